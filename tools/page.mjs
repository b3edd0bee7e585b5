// What the page takes from others: Markdown, colours of code, formulas, and a last look at the HTML made of them.
//
// make page       # bundles these packages of npm as personal_llm/assets/page/library.js; NOTICE has their licences

export { default as createDOMPurify } from "dompurify";
export { default as highlight } from "highlight.js/lib/core";
export { default as katex } from "katex";
export { default as MarkdownIt } from "markdown-it";

import bash from "highlight.js/lib/languages/bash";
import c from "highlight.js/lib/languages/c";
import cpp from "highlight.js/lib/languages/cpp";
import csharp from "highlight.js/lib/languages/csharp";
import css from "highlight.js/lib/languages/css";
import diff from "highlight.js/lib/languages/diff";
import go from "highlight.js/lib/languages/go";
import java from "highlight.js/lib/languages/java";
import javascript from "highlight.js/lib/languages/javascript";
import json from "highlight.js/lib/languages/json";
import php from "highlight.js/lib/languages/php";
import python from "highlight.js/lib/languages/python";
import ruby from "highlight.js/lib/languages/ruby";
import rust from "highlight.js/lib/languages/rust";
import sql from "highlight.js/lib/languages/sql";
import typescript from "highlight.js/lib/languages/typescript";
import xml from "highlight.js/lib/languages/xml";
import yaml from "highlight.js/lib/languages/yaml";

export const languages = {
  bash, c, cpp, csharp, css, diff, go, java, javascript, json, php, python, ruby, rust, sql, typescript, xml, yaml,
};
