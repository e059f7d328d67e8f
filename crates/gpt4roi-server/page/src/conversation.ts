// A conversation about a picture: its rounds, and what of them the server is told.

import { mentioned, renumbered, withMentions } from './mentions.ts';
import { type Box, bounds, type Region, sameShape, type Shape } from './regions.ts';

export interface Conversation {
  readonly id: string;
  readonly title: string;
  readonly changed: number;
  readonly picture: string;
  readonly regions: readonly Region[];
  readonly rounds: readonly Round[];
  readonly draft: string;
  /** Whether small regions are looked at more closely, which takes longer. */
  readonly closer: boolean;
  /** How often it was saved. */
  readonly revision: number;
}

export interface Round {
  readonly question: string;
  /** `bulk` has each region described on its own. */
  readonly kind: 'chat' | 'bulk';
  /** The regions it is about, as they were when it was asked. */
  readonly regions: readonly Region[];
  readonly answer: string;
  /** How sure the model is of its answer, 0 to 1, where it said so. */
  readonly probability?: number | null;
  /** Descriptions of a bulk round, region by region. */
  readonly each: readonly { readonly region: number; readonly text: string; readonly probability?: number | null }[];
  readonly state: 'running' | 'done' | 'cut' | 'stopped' | 'failed';
  readonly fault: string | null;
}

/** At most this many regions may come with a question, says the server. */
const MOST_REGIONS = 100;

export function started(id: string, picture: string, title: string, now: number): Conversation {
  return { id, title, changed: now, picture, regions: [], rounds: [], draft: '', closer: false, revision: 0 };
}

/** A conversation as this or an earlier edition of the page stored it. */
export type Stored = Omit<Conversation, Later> & Partial<Pick<Conversation, Later>>;
type Later = 'closer' | 'revision';

export function completed(stored: Stored): Conversation {
  return { ...started(stored.id, stored.picture, stored.title, stored.changed), ...stored };
}

/** The conversation as it is saved next. */
export function revised(conversation: Conversation): Conversation {
  return { ...conversation, revision: conversation.revision + 1 };
}

/** Whether a conversation that is to be saved goes on from something older than what is `stored`. */
export function outdated({ revision }: Conversation, stored: Conversation): boolean {
  return stored.revision >= revision;
}

/** A question about those of the regions that it mentions. */
export function question(text: string, regions: readonly Region[]): Round {
  const ids = mentioned(text, (id) => regions.some((region) => region.id === id));
  const about = ids.flatMap((id) => regions.filter((region) => region.id === id));
  return { question: text, kind: 'chat', regions: about, answer: '', each: [], state: 'running', fault: null };
}

/** A description of each of these regions. */
export function bulk(regions: readonly Region[]): Round {
  return { question: 'Describe each region.', kind: 'bulk', regions, answer: '', each: [], state: 'running', fault: null };
}

/** Mentions in a question of regions that don't exist. */
export function unknownMentions(text: string, regions: readonly Region[]): number[] {
  const known = (id: number) => regions.some((region) => region.id === id);
  return mentioned(text, known).filter((id) => !known(id));
}

/** The numbers that the picture or any round uses. */
export function taken(regions: readonly Region[], rounds: readonly Round[]): Set<number> {
  return new Set([...regions, ...rounds.flatMap((round) => round.regions)].map(({ id }) => id));
}

/** The number for the next region: one that neither the picture nor any round uses. */
export function nextId(regions: readonly Region[], rounds: readonly Round[]): number {
  return 1 + Math.max(0, ...taken(regions, rounds));
}

export function withRound(conversation: Conversation, index: number, round: Round): Conversation {
  const rounds = [...conversation.rounds.slice(0, index), round, ...conversation.rounds.slice(index + 1)];
  return { ...conversation, rounds };
}

/** What was answered, in plain words. */
export function spoken({ answer, each }: Round): string {
  return answer || each.map(({ region, text }) => `region${region}: ${text}`).join('\n');
}

/** What a question is called in the list of conversations. */
export function titleOf(text: string): string {
  const plain = text.replace(/<(region\d+)>/g, '$1').replace(/\s+/g, ' ').trim();
  return plain.length > 60 ? `${plain.slice(0, 59)}…` : plain;
}

// What the server is sent.

export interface WireRegion {
  readonly id: string;
  readonly coords: 'pixel';
  readonly box?: Box;
  readonly point?: readonly [number, number];
  readonly polygon?: readonly (readonly [number, number])[];
}

type WirePart =
  | { readonly type: 'text'; readonly text: string }
  | { readonly type: 'image_ref'; readonly id: string; readonly regions: readonly WireRegion[] };

export interface WireMessage {
  readonly role: 'user' | 'assistant';
  readonly content: string | readonly WirePart[];
}

/**
 * The messages that ask the last of `rounds`, with the rounds before it as context.
 *
 * The server knows one shape by each number. A region that was moved since it was talked about
 * therefore goes under its own number as it is now, and under a fresh one as it was then.
 */
export function messages(rounds: readonly Round[], regions: readonly Region[], image: string): WireMessage[] {
  const asked = rounds.at(-1) as Round;
  const before = rounds.slice(0, -1).filter((round) => round.kind === 'chat' && round.answer !== '');
  const names = new Names([...asked.regions, ...regions], nextId(regions, rounds));
  const turns = before.flatMap((round) => {
    const numbers = names.of(round.regions);
    return [renumbered(round.question, numbers), renumbered(round.answer, numbers)];
  });
  turns.push(asked.question);
  const [first, ...rest] = turns as [string, ...string[]];
  const picture: WirePart = { type: 'image_ref', id: image, regions: names.declared() };
  return [
    { role: 'user', content: [picture, { type: 'text', text: first }] },
    ...rest.map((content, index): WireMessage => ({ role: index % 2 ? 'user' : 'assistant', content })),
  ];
}

/** Which number each region goes by on the wire. */
class Names {
  #shapes = new Map<number, Shape>();
  #needed = new Set<number>();

  constructor(regions: readonly Region[], private next: number) {
    for (const { id, shape } of regions) if (!this.#shapes.has(id)) this.#shapes.set(id, shape);
  }

  /** The numbers of these regions, where they differ from their own. */
  of(regions: readonly Region[]): Map<number, number> {
    return new Map(regions.map(({ id, shape }) => [id, this.#number(id, shape)]));
  }

  /** All of them; those that were talked about first, in case that there are too many. */
  declared(): WireRegion[] {
    const ids = [...new Set([...this.#needed, ...this.#shapes.keys()])];
    return ids.slice(0, MOST_REGIONS).map((id) => ({ id: `region${id}`, ...wireShape(this.#shapes.get(id) as Shape) }));
  }

  #number(id: number, shape: Shape): number {
    const known = this.#shapes.get(id);
    const same = [...this.#shapes].find(([, other]) => sameShape(other, shape));
    const number = known && sameShape(known, shape) ? id : known ? (same?.[0] ?? this.next++) : id;
    this.#shapes.set(number, shape);
    this.#needed.add(number);
    return number;
  }
}

export function wireShape(shape: Shape): Omit<WireRegion, 'id'> {
  switch (shape.kind) {
    case 'box':
      return { coords: 'pixel', box: shape.box };
    case 'point':
      return { coords: 'pixel', point: shape.at };
    case 'polygon':
      return { coords: 'pixel', polygon: shape.points };
  }
}

// What the server answers.

/** The numbers of the regions that messages declare. */
export function declared(sent: readonly WireMessage[]): Set<number> {
  const parts = sent.flatMap(({ content }) => (typeof content === 'string' ? [] : content));
  const regions = parts.flatMap((part) => (part.type === 'image_ref' ? part.regions : []));
  return new Set(regions.map(({ id }) => Number(id.slice('region'.length))));
}

export interface ResolvedRegion {
  readonly id: number;
  readonly box: Box;
}

export interface Settled {
  readonly round: Round;
  readonly regions: readonly Region[];
  /** Numbers of regions that are new: coordinates in the question. */
  readonly fresh: readonly number[];
}

/**
 * Takes in which boxes the server read for a question: known regions learn theirs; those that came
 * from coordinates in the question appear, unless there is a region just there, and the question
 * mentions them from now on.
 */
export function settled(
  round: Round,
  resolved: readonly ResolvedRegion[],
  regions: readonly Region[],
  declared: ReadonlySet<number>,
  next: number,
): Settled {
  const read = new Map(resolved.filter(({ id }) => declared.has(id)).map(({ id, box }) => [id, box]));
  const learn = (region: Region) => {
    const box = read.get(region.id);
    return box ? { ...region, read: box } : region;
  };
  const unchanged = (region: Region) =>
    round.regions.some((asked) => asked.id === region.id && sameShape(asked.shape, region.shape));
  const found = resolved.filter(({ id }) => !declared.has(id)).sort((a, b) => a.id - b.id);
  const here = (box: Box) => regions.find((region) => sameBox(readBox(region), box))?.id;
  const numbers = new Map<number, number>();
  const fresh: Region[] = [];
  for (const { id, box } of found) {
    const number = here(box) ?? next + fresh.length;
    numbers.set(id, number);
    if (number >= next) fresh.push({ id: number, shape: { kind: 'box', box }, read: box });
  }
  const all = [...regions.map((region) => (unchanged(region) ? learn(region) : region)), ...fresh];
  const asked = new Set(round.regions.map(({ id }) => id));
  const pointedOut = all.filter(({ id }) => [...numbers.values()].includes(id) && !asked.has(id));
  return {
    round: {
      ...round,
      question: withMentions(round.question, [...numbers.values()]),
      answer: renumbered(round.answer, numbers),
      regions: [...round.regions.map(learn), ...pointedOut],
    },
    regions: all,
    fresh: fresh.map((region) => region.id),
  };
}

function sameBox(a: Box, b: Box): boolean {
  return a.every((edge, index) => edge === b[index]);
}

/** The box that a model reads for a region, as far as it is known. */
export function readBox(region: Region): Box {
  return region.read ?? bounds(region.shape);
}
