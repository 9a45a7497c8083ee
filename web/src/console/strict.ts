// xterm writes its styles into <style> elements and style attributes, which the page's policy forbids. Where this is
// installed, the same text goes into style sheets of the document and into the style of the element itself, which the
// policy allows: neither can bring a script, or a style that the page's own code did not set.

/** Returns an element that takes the text of a style sheet, and takes the sheet away with itself. */
function sheetElement(): HTMLElement {
  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
  const element = document.createElement("span");
  element.hidden = true;
  Object.defineProperty(element, "textContent", {
    get: () => "",
    set: (text: string) => {
      sheet.replaceSync(text);
    },
  });
  element.remove = () => {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((one) => one !== sheet);
    Element.prototype.remove.call(element);
  };
  return element;
}

type Create = (tag: string, options?: ElementCreationOptions) => HTMLElement;

let installed = false;

/** Gives the document both ways, once. */
export function allowStyles(): void {
  if (installed) return;
  installed = true;
  const create = Object.getOwnPropertyDescriptor(Document.prototype, "createElement")?.value as Create;
  const createElement: Create = (tag, options) =>
    tag === "style" ? sheetElement() : create.call(document, tag, options);
  Object.defineProperty(document, "createElement", { value: createElement, configurable: true, writable: true });

  const proto = Element.prototype;
  const given = Object.getOwnPropertyDescriptor(proto, "setAttribute")?.value as (name: string, value: string) => void;
  proto.setAttribute = function (this: Element, name: string, value: string): void {
    if (name === "style" && this instanceof HTMLElement) this.style.cssText = value;
    else given.call(this, name, value);
  };
}
