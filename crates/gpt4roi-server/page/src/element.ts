// Elements of the page. Words get in as text alone, so nothing that anybody typed can become markup.

type Properties = Record<string, string | number | boolean | ((event: Event) => void) | undefined>;
type Child = Node | string | null | false;

/** An element with attributes, listeners (`onclick`, …) and children. */
export function element<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  properties: Properties = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const node = document.createElement(tag);
  assign(node, properties);
  node.append(...children.filter((child): child is Node | string => child !== null && child !== false));
  return node;
}

export function svg<K extends keyof SVGElementTagNameMap>(tag: K, properties: Properties = {}): SVGElementTagNameMap[K] {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  assign(node, properties);
  return node;
}

/** An icon of the sprite in index.html. */
export function icon(name: string): SVGSVGElement {
  const drawing = svg('svg', { class: 'icon', 'aria-hidden': 'true' });
  drawing.append(svg('use', { href: `#icon-${name}` }));
  return drawing;
}

/** The element of index.html with this id. */
export function byId<T extends Element = HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`index.html has no #${id}`);
  return found as Element as T;
}

export function assign(node: Element, properties: Properties): void {
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === 'function') node.addEventListener(name.slice(2), value);
    else if (value === false || value === undefined) node.removeAttribute(name);
    else node.setAttribute(name, value === true ? '' : String(value));
  }
}
