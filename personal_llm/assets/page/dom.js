// helpers for elements, and lists that are drawn by key: what did not change stays, and so does an open form
export const $ = (id) => document.getElementById(id);
export const isWide = () => matchMedia("(min-width: 64rem)").matches;
export const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
export const attempt = (action) => action().catch((error) => show(error.message)); // shows an error, and goes on

export function show(text, canUndo = false) { // canUndo: it tells of an act that the person can take back
  $("said").textContent = text.slice(0, 1).toUpperCase() + text.slice(1);
  $("take-back").hidden = !canUndo;
}

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export const makeLines = (texts) => texts.map((textContent) => make("li", { textContent, dir: "auto" }));

// a copy of a template: its texts or elements by class, what its buttons do by name; a part without one goes
export function stamp(id, texts, actions, about = "") {
  const item = $(id).content.firstElementChild.cloneNode(true);
  for (const [name, text] of Object.entries(texts)) {
    const part = item.querySelector(`.${name}`);
    if (!text) part.remove();
    else part.append(text);
  }
  for (const button of item.querySelectorAll("button[name]")) {
    const action = actions[button.name];
    if (button.name === "more") button.popoverTargetElement = button.nextElementSibling;
    else if (!action) button.remove();
    else button.onclick = () => attempt(async () => { button.closest("[popover]")?.hidePopover(); return action(); });
    if (button.ariaLabel?.endsWith(":")) button.ariaLabel += ` ${about}`;
    button.title = button.ariaLabel || "";
  }
  return item;
}

export const onSubmit = (form, action) => {
  form.onsubmit = (event) => { event.preventDefault(); attempt(action); };
};

export function sync(list, rows, key, build) {
  const names = rows.map((row) => String(row[key]));
  for (const element of [...list.children]) if (!names.includes(element.dataset.key)) element.remove();
  for (const [place, row] of rows.entries()) {
    const content = JSON.stringify(row);
    let element = [...list.children].find((one) => one.dataset.key === names[place]);
    const name = element?.contains(document.activeElement) && document.activeElement.name;
    if (!element || (element.dataset.content !== content && !element.querySelector("form"))) {
      element?.remove();
      element = build(row);
      Object.assign(element.dataset, { key: names[place], content });
    }
    if (list.children[place] !== element) list.insertBefore(element, list.children[place] || null);
    if (name) element.querySelector(`[name=${name}]`)?.focus(); // the keyboard stays where it was
  }
}
