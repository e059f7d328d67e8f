// Where questions are written: mentions in their colours, completed as they are typed, spoken words.

import { element } from './element.ts';
import { completion, inserted, mention, parts, spelled, written } from './mentions.ts';
import { colourClass } from './palette.ts';
import { described, type Region } from './regions.ts';

export interface ComposerWishes {
  write(draft: string): void;
  ask(text: string): void;
  light(id: number | null): void;
  leaveEditing(): void;
}

export class Composer {
  #regions: readonly Region[] = [];
  #painted: readonly unknown[] = [];
  /** Regions on offer for the mention that is being typed. */
  #offered: readonly Region[] = [];
  #active = 0;

  constructor(
    private readonly field: HTMLTextAreaElement,
    private readonly mirror: HTMLElement,
    private readonly offers: HTMLElement,
    private readonly wishes: ComposerWishes,
  ) {
    field.addEventListener('input', () => this.#typed());
    field.addEventListener('keydown', (event) => this.#key(event));
    field.addEventListener('blur', () => this.#offer([]));
    field.addEventListener('scroll', () => (mirror.scrollTop = field.scrollTop));
    field.addEventListener('pointermove', (event) => wishes.light(this.#under(event)));
    field.addEventListener('pointerleave', () => wishes.light(null));
  }

  render(draft: string, regions: readonly Region[]): void {
    this.#regions = regions;
    if (this.field.value !== draft) {
      this.field.value = draft;
      this.field.setSelectionRange(draft.length, draft.length);
    }
    this.#paint();
  }

  /** What is asked: a number behind @ is a mention, chosen from the list or not. */
  get text(): string {
    return spelled(this.field.value, this.#known);
  }

  focus(): void {
    this.field.focus();
  }

  /** The regions that the draft mentions, in its order. */
  get mentioned(): number[] {
    return this.#parts().flatMap((part) => ('region' in part ? [part.region] : []));
  }

  /** Writes a mention at the caret, or over the one that is being typed. */
  insert(id: number): void {
    const typed = this.#offered.length > 0 ? completion(this.field.value, this.field.selectionStart) : null;
    const start = typed?.start ?? this.field.selectionStart;
    this.write(inserted(this.field.value, start, this.field.selectionEnd, id));
    this.#offer([]);
  }

  /** Writes what was heard behind what stands there: a field that is not written in has no caret to rely on. */
  hear(words: string): void {
    const end = this.field.value.length;
    this.write(written(this.field.value, end, end, words));
  }

  write({ text, caret }: { readonly text: string; readonly caret: number }): void {
    this.field.value = text;
    this.field.setSelectionRange(caret, caret);
    this.wishes.write(text);
  }

  readonly #known = (id: number) => this.#regions.some((region) => region.id === id);

  #parts() {
    return parts(this.field.value, this.#known);
  }

  /** Colours lie behind the words, in a copy of the text under the field. */
  #paint(): void {
    if (this.#painted[0] === this.field.value && this.#painted[1] === this.#regions) return;
    this.#painted = [this.field.value, this.#regions];
    const marks = this.#parts().map((part) => {
      if (!('region' in part)) return document.createTextNode(part.text);
      return element('mark', { class: this.#known(part.region) ? colourClass(part.region) : 'unknown', 'data-chip': part.region }, part.text);
    });
    this.mirror.replaceChildren(...marks, '\u200b');
    this.field.style.height = 'auto';
    this.field.style.height = `${this.field.scrollHeight}px`;
    this.mirror.scrollTop = this.field.scrollTop;
  }

  /** The region whose mention lies under the pointer. */
  #under({ clientX, clientY }: MouseEvent): number | null {
    const marks = [...this.mirror.querySelectorAll<HTMLElement>('mark')];
    const inside = ({ left, right, top, bottom }: DOMRect) => left <= clientX && clientX <= right && top <= clientY && clientY <= bottom;
    const found = marks.find((mark) => [...mark.getClientRects()].some(inside));
    return found ? Number(found.dataset.chip) : null;
  }

  #typed(): void {
    const typed = completion(this.field.value, this.field.selectionStart);
    if (typed) this.wishes.write(this.field.value);
    else this.#spell();
    this.#offer(typed ? this.#regions.filter(({ id }) => String(id).startsWith(typed.digits)) : []);
  }

  /** Behind a number that was written out the words go on: it has become a mention. */
  #spell(): void {
    const { value, selectionStart } = this.field;
    const before = spelled(value.slice(0, selectionStart), this.#known);
    if (before.length === selectionStart) this.wishes.write(value);
    else this.write({ text: before + value.slice(selectionStart), caret: before.length });
  }

  #offer(regions: readonly Region[]): void {
    this.#offered = regions;
    this.#active = 0;
    this.#showOffers();
  }

  #showOffers(): void {
    const options = this.#offered.map((region, index) => {
      const choose = (event: Event) => {
        event.preventDefault();
        this.insert(region.id);
      };
      const active = index === this.#active;
      return element(
        'li',
        { id: `offer-${region.id}`, role: 'option', 'aria-selected': String(active), onpointerdown: choose },
        element('span', { class: `chip ${colourClass(region.id)}` }, `region ${region.id}`),
        element('span', { class: 'what' }, described(region).replace(/^Region \d+, /, '')),
      );
    });
    this.offers.replaceChildren(...options);
    this.offers.hidden = options.length === 0;
    const active = this.#offered[this.#active];
    this.field.setAttribute('aria-expanded', String(options.length > 0));
    if (active) this.field.setAttribute('aria-activedescendant', `offer-${active.id}`);
    else this.field.removeAttribute('aria-activedescendant');
    options[this.#active]?.scrollIntoView({ block: 'nearest' });
  }

  #key(event: KeyboardEvent): void {
    if (event.isComposing) return;
    const offered = this.#offered.length > 0 && this.#keyOnOffers(event.key);
    if (!offered && event.key === 'Enter' && !event.shiftKey) this.wishes.ask(this.text);
    else if (!offered && event.key === 'Escape') this.wishes.leaveEditing();
    else if (!offered) return;
    event.preventDefault();
  }

  #keyOnOffers(key: string): boolean {
    const count = this.#offered.length;
    if (key === 'ArrowDown') this.#active = (this.#active + 1) % count;
    else if (key === 'ArrowUp') this.#active = (this.#active + count - 1) % count;
    else if (key === 'Enter' || key === 'Tab') this.insert((this.#offered[this.#active] as Region).id);
    else if (key === 'Escape') this.#offered = [];
    else return false;
    this.#showOffers();
    return true;
  }
}

/** A list of mentions in words: `<region1>, <region2> and <region3>`. */
export function listed(ids: readonly number[]): string {
  const names = ids.map(mention);
  return names.length < 2 ? names.join('') : `${names.slice(0, -1).join(', ')} and ${names.at(-1)}`;
}
