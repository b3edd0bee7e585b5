// Markdown of a reply as elements: HTML in it stays text, and nothing in it can act
import { attempt, make, show } from "./dom.js";
import { createDOMPurify, highlight, katex, languages, MarkdownIt, tex } from "./library.js";

for (const [name, language] of Object.entries(languages)) highlight.registerLanguage(name, language);

const paint = (code, name) => (highlight.getLanguage(name) ? highlight.highlight(code, { language: name }).value : "");
const write = (formula, displayMode) => katex.renderToString(formula, { displayMode, output: "mathml", throwOnError: false });
const markdown = new MarkdownIt({ breaks: true, highlight: paint }).disable("image");
markdown.use(tex, { delimiters: "all", render: write });
markdown.validateLink = (address) => /^https?:/i.test(address);

const purify = createDOMPurify(window);
const ALLOWED = { USE_PROFILES: { html: true, mathMl: true }, FORBID_ATTR: ["style"], ADD_FORBID_CONTENTS: ["annotation"], RETURN_DOM_FRAGMENT: true };

export function makeMarkdown(text) {
  const root = make("div", { className: "reply", dir: "auto" }, purify.sanitize(markdown.render(text), ALLOWED));
  const own = "ul, ol, blockquote, h1, h2, h3, h4, h5, h6, th, td, :not(li, blockquote) > p"; // blocks with a direction of their own
  for (const block of root.querySelectorAll(own)) block.dir = "auto";
  for (const link of root.querySelectorAll("a")) Object.assign(link, { target: "_blank", rel: "noopener noreferrer" });
  for (const block of root.querySelectorAll("pre, table, .katex-display")) {
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
