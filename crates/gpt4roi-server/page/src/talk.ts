// The conversation as it is read: questions, answers, and what can be done with them.

import { element, icon } from './element.ts';
import { type Conversation, type Round, spoken } from './conversation.ts';
import { mention, mentioned, parts } from './mentions.ts';
import { colourClass } from './palette.ts';
import type { Region } from './regions.ts';

export interface TalkWishes {
  retry(): void;
  edit(index: number): void;
  select(id: number): void;
}

/** A round as it is shown. */
interface Shown {
  readonly node: HTMLElement;
  /** The regions that were on the picture when it was looked at last. */
  readonly present: string;
  /** Those of its mentions that were not. */
  readonly gone: string;
}

export class Talk {
  #shown = new WeakMap<Round, Shown>();

  constructor(
    private readonly list: HTMLElement,
    private readonly wishes: TalkWishes,
  ) {}

  /** Shows the rounds; only those that changed are made anew. */
  render(conversation: Conversation | null, regions: readonly Region[]): void {
    const rounds = conversation?.rounds ?? [];
    const present = regions.map(({ id }) => id).join();
    const nodes = rounds.map((round, index) => this.#node(round, index, regions, present));
    const same = nodes.length === this.list.children.length && nodes.every((node, index) => node === this.list.children[index]);
    if (same) return;
    const scroller = this.list.parentElement as HTMLElement;
    const following = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80;
    const grown = nodes.length > this.list.children.length;
    this.#place(nodes);
    if (following || grown) scroller.scrollTop = scroller.scrollHeight;
  }

  /** Touches only the places where another node belongs, so that focus and selection stay in all others. */
  #place(nodes: readonly HTMLElement[]): void {
    for (const [index, node] of nodes.entries()) {
      const there = this.list.children[index];
      if (!there) this.list.append(node);
      else if (there !== node) there.replaceWith(node);
    }
    while (this.list.children.length > nodes.length) this.list.lastElementChild?.remove();
  }

  /** Of other regions on the picture a round takes no notice, so that it keeps focus and selection while they are drawn. */
  #node(round: Round, index: number, regions: readonly Region[], present: string): HTMLElement {
    const shown = this.#shown.get(round);
    if (shown?.present === present) return shown.node;
    const gone = goneFrom(regions, round);
    const node = shown?.gone === gone ? shown.node : this.#made(round, index, regions);
    this.#shown.set(round, { node, present, gone });
    return node;
  }

  #made(round: Round, index: number, regions: readonly Region[]): HTMLElement {
    const words = (text: string) => this.#words(text, round, regions);
    const question = element('div', { class: 'question' }, element('p', {}, ...words(round.question)));
    if (round.kind === 'chat' && round.state !== 'running') question.append(this.#button('edit', 'Edit the question', () => this.wishes.edit(index)));
    const answer = element('div', { class: `answer ${round.state}` });
    if (round.answer !== '') answer.append(element('p', {}, ...words(round.answer)));
    if (round.kind === 'bulk') answer.append(this.#descriptions(round, words));
    if (round.state === 'running') answer.append(element('span', { class: 'waiting', 'aria-label': 'Answering' }));
    if (round.fault !== null) answer.append(element('p', { class: 'fault', role: 'alert' }, round.fault));
    const note = noteOf(round);
    if (note) answer.append(element('p', { class: 'note' }, note));
    if (round.state !== 'running') answer.append(this.#actions(round));
    return element('article', { class: 'round' }, question, answer);
  }

  #descriptions(round: Round, words: (text: string) => Node[]): HTMLElement {
    const rows = round.each.map(({ region, text, probability }) =>
      element('li', {}, ...words(mention(region)), element('span', {}, ...words(text), ' ', sureness(probability))));
    return element('ul', { class: 'descriptions' }, ...rows);
  }

  #actions(round: Round): HTMLElement {
    const row = element('div', { class: 'actions' }, sureness(round.probability));
    const text = spoken(round);
    if (text !== '' && 'clipboard' in navigator) {
      row.append(this.#button('copy', 'Copy the answer', () => void navigator.clipboard.writeText(text)));
    }
    // The style sheet shows it in the last round only, so that a round is not made anew when another follows.
    row.append(this.#button('retry', round.state === 'done' ? 'Answer again, with some variation' : 'Try again', () => this.wishes.retry()));
    return row;
  }

  #button(name: string, label: string, run: () => void): HTMLElement {
    return element('button', { type: 'button', class: `quiet ${name}`, title: label, 'aria-label': label, onclick: run }, icon(name));
  }

  #words(text: string, round: Round, regions: readonly Region[]): Node[] {
    return parts(text, isAskedIn(round)).map((part) => {
      if (!('region' in part)) return document.createTextNode(part.text);
      return this.#chip(part.region, regions.some(({ id }) => id === part.region));
    });
  }

  #chip(id: number, present: boolean): HTMLElement {
    if (!present) return element('s', { class: 'chip gone', title: `Region ${id} is no longer on the picture` }, `region ${id}`);
    const select = () => this.wishes.select(id);
    return element('button', { type: 'button', class: `chip ${colourClass(id)}`, 'data-chip': id, onclick: select }, `region ${id}`);
  }
}

function isAskedIn({ regions }: Round): (id: number) => boolean {
  return (id) => regions.some((region) => region.id === id);
}

/** The regions that a round mentions and that are no longer on the picture. */
function goneFrom(regions: readonly Region[], round: Round): string {
  const texts = [round.question, round.answer, ...round.each.flatMap(({ region, text }) => [mention(region), text])];
  const ids = texts.flatMap((text) => mentioned(text, isAskedIn(round)));
  return ids.filter((id) => !regions.some((region) => region.id === id)).join();
}

/** How sure the model is of its words. */
function sureness(probability: number | null | undefined): HTMLElement | null {
  if (typeof probability !== 'number') return null;
  const title = 'The geometric mean of the probabilities of its words. It can be sure and wrong.';
  const percent = Math.round(100 * probability);
  return element('span', { class: 'sure', title }, `${percent > 99 ? '> 99' : percent} % sure`);
}

function noteOf(round: Round): string | null {
  switch (round.state) {
    case 'stopped':
      return 'Stopped.';
    case 'cut':
      return 'The answer was cut off at its longest.';
    default:
      return null;
  }
}
