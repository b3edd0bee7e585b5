// Markdown of a reply, made of elements and text nodes only: nothing in it can act
import { make } from "./dom.js";

const INLINE = /(`[^`]+`|\*\*[^*]+\*\*|\*[^*\s](?:[^*]*[^*\s])?\*|\[[^\]]+\]\([^()\s]+\))/;

function makeLink(text, address) {
  const url = URL.canParse(address) ? new URL(address) : null;
  if (!["http:", "https:"].includes(url?.protocol)) return null;
  return make("a", { href: url.href, target: "_blank", rel: "noopener noreferrer", textContent: text });
}

function addInline(parent, text) {
  for (const part of text.split(INLINE)) {
    const link = part.match(/^\[([^\]]+)\]\(([^()\s]+)\)$/);
    if (/^`[^`]+`$/.test(part)) parent.append(make("code", { textContent: part.slice(1, -1) }));
    else if (/^\*\*[^*]+\*\*$/.test(part)) parent.append(make("strong", { textContent: part.slice(2, -2) }));
    else if (/^\*[^*]+\*$/.test(part)) parent.append(make("em", { textContent: part.slice(1, -1) }));
    else parent.append((link && makeLink(link[1], link[2])) || part);
  }
  return parent;
}

const splitCells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
const isRule = (line) => /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)+\|?\s*$/.test(line || "");

function makeRow(line, tag) {
  return make("tr", {}, ...splitCells(line).map((cell) => addInline(make(tag), cell)));
}

export function makeMarkdown(text) {
  const root = make("div", { className: "reply", dir: "auto" });
  let block = null; // the element that the next line may go on with
  const lines = text.split("\n");
  for (const [place, line] of lines.entries()) {
    const item = line.match(/^\s*([-*+]|\d+[.)])\s+(.*)/);
    const heading = line.match(/^#{1,6}\s+(.*)/);
    const isFence = line.trim().startsWith("```");
    if (block?.localName === "pre") {
      if (isFence) block = null;
      else block.append(`${line}\n`);
    } else if (isFence) {
      block = root.appendChild(make("pre"));
    } else if (block?.localName === "table" && line.includes("|")) {
      if (!isRule(line)) block.append(makeRow(line, "td"));
    } else if (line.includes("|") && isRule(lines[place + 1])) {
      block = make("table", {}, makeRow(line, "th"));
      root.append(make("div", { className: "wide", tabIndex: 0 }, block));
    } else if (item) {
      const tag = /\d/.test(item[1]) ? "ol" : "ul";
      if (block?.localName !== tag) block = root.appendChild(make(tag));
      if (tag === "ol" && !block.children.length) block.start = parseInt(item[1], 10);
      addInline(block.appendChild(make("li")), item[2]);
    } else if (heading) {
      addInline(root.appendChild(make("p")).appendChild(make("strong")), heading[1]);
      block = null;
    } else if (!line.trim()) {
      if (["p", "table"].includes(block?.localName)) block = null; // a list goes on after an empty line
    } else {
      if (block?.localName === "p") block.append(make("br"));
      else block = root.appendChild(make("p"));
      addInline(block, line);
    }
  }
  return root;
}
