// helpers for elements, and lists that are drawn by key: what did not change stays, with what is typed in it
export const $ = (id) => document.getElementById(id);
export const show = (text) => { $("note").textContent = text; };
export const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export function makeButton(text, label, onclick, className = "small") {
  return make("button", { type: "button", textContent: text, ariaLabel: label, title: label, className, onclick });
}

export const makeFold = (title, ...children) => make("details", {}, make("summary", { textContent: title }), ...children);

export const attempt = (action) => action().catch((error) => show(error.message)); // shows an error, and goes on

export const onSubmit = (form, action) => {
  form.onsubmit = (event) => { event.preventDefault(); attempt(action); };
};

// whether a person types here
const isBusy = (element) => [...element.querySelectorAll("textarea, input")]
  .some((field) => field.value !== field.defaultValue || field === document.activeElement);

export function sync(list, rows, key, build) {
  const known = new Map([...list.children].map((element) => [element.dataset.key, element]));
  let place = null; // the element before
  for (const row of rows) {
    const name = String(key(row));
    const content = JSON.stringify(row);
    let element = known.get(name);
    known.delete(name);
    if (!element || element.dataset.content !== content && !isBusy(element)) {
      const made = build(row);
      Object.assign(made.dataset, { key: name, content });
      element?.replaceWith(made);
      element = made;
    }
    const next = place ? place.nextElementSibling : list.firstElementChild;
    if (next !== element) list.insertBefore(element, next);
    place = element;
  }
  for (const element of known.values()) if (!isBusy(element)) element.remove();
}
