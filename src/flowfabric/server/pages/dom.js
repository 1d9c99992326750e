// Making elements and prose. Text from the document is only ever set as text, never parsed as markup.

/** Make an element; `children` are elements, strings or nothing. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

/** Split text at its backticks into words and code. */
export function inline(text) {
  return text.split("`").map((part, index) => (index % 2 ? el("code", {}, part) : part));
}

/** Render paragraphs, lists of `- ` lines and code in backticks. */
export function prose(text) {
  return text.split(/\n\s*\n/).map((block) => {
    const lines = block.split("\n");
    if (!lines[0].startsWith("- ")) return el("p", {}, inline(lines.join(" ")));
    const items = [];
    for (const line of lines) {
      if (line.startsWith("- ")) items.push(line.slice(2));
      else items.push(`${items.pop()} ${line.trim()}`);
    }
    return el("ul", {}, items.map((item) => el("li", {}, inline(item))));
  });
}

/** A disclosure whose content is made when it is first opened. */
export function folded(attributes, summary, content) {
  const made = el("details", attributes, el("summary", {}, summary));
  made.addEventListener("toggle", () => {
    if (made.open && made.childElementCount === 1) made.append(...[content()].flat());
  });
  return made;
}

/** A button that copies what `text` answers. */
export function copyButton(text) {
  const said = el("span", { class: "copied", role: "status" });
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text());
      said.textContent = "copied";
    } catch {
      said.textContent = "select the text and copy it";
    }
    setTimeout(() => { said.textContent = ""; }, 2000);
  };
  return [el("button", { type: "button", onclick: copy }, "Copy"), said];
}
