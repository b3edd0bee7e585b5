// helpers for elements, and lists that are drawn by key: what did not change stays, and so does an open form
export const $ = (id) => document.getElementById(id);
export const wide = matchMedia("(min-width: 64rem)"); // whether the list of chats has a column of its own
export const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
export const attempt = (action) => action().catch((error) => show(error.message)); // shows an error, and goes on

export const makeSentence = (text) => text.slice(0, 1).toUpperCase() + text.slice(1);

const SECONDS = 12; // that a note stays; the header's button brings it back
let leaving = 0; // the timer of its end
let height = 0; // of the note, in pixels

export function show(text = "") { // a note; without a text: it goes
  if (text) $("said").textContent = makeSentence(text);
  $("note").hidden = !text;
  clearTimeout(leaving);
  const leave = () => ($("note").matches(":hover, :focus-within") ? keep() : show());
  const keep = () => { leaving = setTimeout(leave, SECONDS * 1000); };
  if (text) keep();
}

new ResizeObserver(() => { // what somebody reads stays where it is
  const moved = $("note").offsetHeight - height;
  height += moved;
  for (const id of ["scroller", "known"]) $(id).scrollTop += moved;
}).observe($("note"));

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export const makeLine = (textContent) => make("li", { textContent, dir: "auto" });

function addKeys(menu) { // up and down move, Tab goes on behind the button; Escape is the browser's
  const items = [...menu.children];
  for (const item of items) Object.assign(item, { role: "menuitem", tabIndex: -1, autofocus: item === items[0] });
  menu.onkeydown = (event) => {
    if (event.key === "Tab") menu.hidePopover();
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    items.at((items.indexOf(document.activeElement) + step) % items.length).focus();
  };
}

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
  for (const menu of item.querySelectorAll("[popover]")) addKeys(menu);
  return item;
}

export const onSubmit = (form, action) => {
  form.onsubmit = (event) => { event.preventDefault(); attempt(action); };
};

export function sync(list, rows, key, build) {
  const names = rows.map((row) => String(row[key]));
  const wanted = new Set(names);
  const known = new Map([...list.children].map((element) => [element.dataset.key, element]));
  for (const [name, element] of known) if (!wanted.has(name)) element.remove();
  for (const [place, row] of rows.entries()) {
    const content = JSON.stringify(row);
    let element = known.get(names[place]);
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
