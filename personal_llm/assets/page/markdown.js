// Markdown of a reply, made of elements and text nodes only: nothing in it can act
import { make } from "./dom.js";

const INLINE = /`([^`]+)`|\*\*([^*]+)\*\*|\*([^*\s](?:[^*]*[^*\s])?)\*|\[([^\]]+)\]\((https?:\/\/[^()\s]+)\)/gi;

function addInline(parent, text) {
  let end = 0;
  for (const { 0: whole, 1: code, 2: strong, 3: em, 4: label, 5: href, index } of text.matchAll(INLINE)) {
    const link = { href, target: "_blank", rel: "noopener noreferrer" };
    const tag = label ? "a" : ["code", "strong", "em"][[code, strong, em].findIndex(Boolean)];
    parent.append(text.slice(end, index));
    parent.append(make(tag, { textContent: label || code || strong || em, ...(label ? link : {}) }));
    end = index + whole.length;
  }
  parent.append(text.slice(end));
  return parent;
}

function makeCells(line, tag) {
  const cells = line.trim().replace(/^\||\|$/g, "").split("|");
  return make("tr", {}, ...cells.map((cell) => addInline(make(tag), cell.trim())));
}

export function makeMarkdown(text) {
  const root = make("div", { className: "reply", dir: "auto" });
  let block = null; // the element that the next line may go on with
  for (const line of text.split("\n")) {
    const [, mark, content] = line.match(/^\s*([-*+]|\d+[.)])\s+(.*)/) || [];
    const heading = line.match(/^#{1,6}\s+(.*)/);
    const kind = block?.localName;
    if (line.trim().startsWith("```")) {
      block = kind === "pre" ? null : root.appendChild(make("pre"));
    } else if (kind === "pre") {
      block.append(`${line}\n`);
    } else if (kind === "table" && line.includes("|")) {
      if (!/^[\s|:-]+$/.test(line)) block.append(makeCells(line, "td"));
    } else if (line.trim().startsWith("|")) {
      block = make("table", {}, makeCells(line, "th"));
      root.append(make("div", { className: "wide", tabIndex: 0 }, block));
    } else if (mark) {
      const tag = /\d/.test(mark) ? "ol" : "ul";
      if (kind !== tag) block = root.appendChild(make(tag, tag === "ol" ? { start: parseInt(mark, 10) } : {}));
      addInline(block.appendChild(make("li")), content);
    } else if (heading) {
      addInline(root.appendChild(make("p")).appendChild(make("strong")), heading[1]);
      block = null;
    } else if (!line.trim()) {
      if (kind === "p" || kind === "table") block = null; // a list goes on after an empty line
    } else {
      if (kind === "p") block.append(make("br"));
      else block = root.appendChild(make("p"));
      addInline(block, line);
    }
  }
  return root;
}
