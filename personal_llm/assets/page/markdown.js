// Markdown of a reply as elements: HTML in it stays text, and nothing in it can act
import { attempt, make, show } from "./dom.js";
import { createDOMPurify, highlight, katex, languages, MarkdownIt } from "./library.js";

for (const [name, language] of Object.entries(languages)) highlight.registerLanguage(name, language);

const paint = (code, name) => (highlight.getLanguage(name) ? highlight.highlight(code, { language: name }).value : "");
const markdown = new MarkdownIt({ breaks: true, highlight: paint }).disable("image");
markdown.validateLink = (address) => /^https?:/i.test(address);

const FORMULAS = [ // pattern, whether it is on display
  [/\$\$((?:[^$\\]|\\[^]|\$(?!\$))+)\$\$/y, true],
  [/\\\[([^]+?)\\\]/y, true],
  [/\\\(([^]+?)\\\)/y, false],
  [/\$(?!\s)((?:[^$\\]|\\[^])+)(?<!\s)\$(?!\d)/y, false], // $5 and $6 are prices
];

function findFormula(text, start) { // that begins there
  for (const [pattern, displayMode] of FORMULAS) {
    pattern.lastIndex = start;
    const found = pattern.exec(text);
    if (found) return { formula: found[1], displayMode, end: pattern.lastIndex };
  }
  return null;
}

function readInLine(state, isSilent) {
  const found = findFormula(state.src, state.pos);
  if (!found) return false;
  if (!isSilent) state.push("formula", "math", 0).meta = found;
  state.pos = found.end;
  return true;
}

function readBlock(state, first, last, isSilent) { // on lines of its own, where it may look like a list
  const text = state.getLines(first, last, state.blkIndent, false).trimStart();
  const found = /^(\$\$|\\\[)/.test(text) && findFormula(text, 0);
  if (!found || !/^[ \t]*(\n|$)/.test(text.slice(found.end))) return false;
  if (!isSilent) {
    state.push("formula", "math", 0).meta = found;
    state.line = first + text.slice(0, found.end).split("\n").length;
  }
  return true;
}

markdown.inline.ruler.before("escape", "formula", readInLine);
markdown.block.ruler.after("blockquote", "formula", readBlock, { alt: ["paragraph", "reference", "blockquote", "list"] });
markdown.renderer.rules.formula = (tokens, index) => {
  const { formula, displayMode } = tokens[index].meta;
  return katex.renderToString(formula, { displayMode, output: "mathml", throwOnError: false });
};

const purify = createDOMPurify(window);
const ALLOWED = { USE_PROFILES: { html: true, mathMl: true }, FORBID_ATTR: ["style"], ADD_FORBID_CONTENTS: ["annotation"], RETURN_DOM_FRAGMENT: true };

export function makeMarkdown(text) {
  const root = make("div", { className: "reply", dir: "auto" }, purify.sanitize(markdown.render(text), ALLOWED));
  const own = "ul, ol, blockquote, h1, h2, h3, h4, h5, h6, th, td, :not(li, blockquote) > p"; // blocks with a direction of their own
  for (const block of root.querySelectorAll(own)) block.dir = "auto";
  for (const link of root.querySelectorAll("a")) Object.assign(link, { target: "_blank", rel: "noopener noreferrer" });
  for (const block of root.querySelectorAll("pre, table, math[display=block]")) {
    const wide = make("div", { className: "wide", tabIndex: 0, dir: block.localName === "pre" ? "ltr" : "auto" });
    block.replaceWith(wide);
    wide.append(block);
    if (block.localName === "pre" && navigator.clipboard) { // none in a page from another computer
      const copy = () => attempt(() => navigator.clipboard.writeText(block.textContent).then(() => show("Code copied.")));
      wide.before(make("button", { type: "button", className: "small copy", textContent: "Copy code", onclick: copy }));
    }
  }
  return root;
}
