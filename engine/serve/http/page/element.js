// -> an element with attributes, and children that are elements or texts; nothing is ever read as HTML.
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...children);
  return made;
}

// Where a bar ends, 0..1, for the style sheet.
export function bar(name, part, ...children) {
  const made = element("span", { class: name }, ...children);
  made.style.setProperty("--part", Math.min(1, Math.max(0, part)));
  return made;
}

export const percent = (part) => `${Number((100 * part).toFixed(1))} %`;

export function milliseconds(seconds) {
  const value = 1000 * seconds;
  return `${value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en")} ms`;
}
