// Draw nbs/images/diagrams/*.dot as the SVG files beside them. The graph's name is the picture's title.
//
// make diagrams       # Graphviz comes from npm, compiled to WebAssembly; no browser and no network afterwards

import { createRequire } from "node:module";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";

const FOLDER = "nbs/images/diagrams";
const STYLE = `
  bgcolor="white" pad=0.15 nodesep=0.25 ranksep=0.4 fontname="Helvetica" fontsize=12
  node [shape=box style="rounded,filled" fillcolor="#eef3fb" color="#5b7aa8" margin="0.13,0.08" height=0.3
        fontname="Helvetica" fontsize=13]
  edge [color="#555555" arrowsize=0.7 fontname="Helvetica" fontsize=11 fontcolor="#333333"]`;
const KINDS = {
  "[question]": '[fillcolor="#fff3d6" color="#b8860b"]', // a decision
  "[result]": '[fillcolor="#e6f4ea" color="#3c8a57"]', // what comes out
  "[no]": '[fillcolor="#f2f2f2" color="#999999"]', // what is left out
};

const { instance } = createRequire(`${process.cwd()}/build/diagrams/`)("@viz-js/viz");
const graphviz = await instance();

for (const name of readdirSync(FOLDER).filter((name) => name.endsWith(".dot"))) {
  let source = readFileSync(`${FOLDER}/${name}`, "utf8");
  const title = source.match(/^digraph "(.+?)" \{/)[1];
  for (const [kind, look] of Object.entries(KINDS)) source = source.replaceAll(kind, look);
  source = source.replace("{", `{${STYLE}`);
  const drawn = graphviz.renderString(source, { format: "svg", engine: "dot" });
  const svg = drawn
    .slice(drawn.indexOf("<svg"))
    .replace(/<!--[^]*?-->\n?/g, "")
    .replace(/<title>[^]*?<\/title>\n?/g, "")
    .replace(/ id="[^"]*" class="[^"]*"/g, "")
    .replace(/(\d)pt"/g, '$1"') // a font of 13 pixels
    .replaceAll('"Helvetica,sans-Serif"', '"Helvetica,Arial,sans-serif"') // Graphviz knows the widths of one name
    .replaceAll('font-size="13.00"', 'font-size="12.00"') // boxes drawn for 13 have room for a wider font
    .replace(/ xmlns:xlink="[^"]*"/, ' role="img"')
    .replace(/>/, `>\n<title>${title}</title>`);
  writeFileSync(`${FOLDER}/${name.replace(".dot", ".svg")}`, svg);
}
