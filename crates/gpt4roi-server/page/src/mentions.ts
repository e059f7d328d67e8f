// Mentions of regions in questions and answers, by the server's rules (`mention.rs` of the library).

export type Part =
  | { readonly text: string }
  | { readonly region: number; readonly text: string };

const WORD = '[\\p{L}\\p{N}_\\u200B-\\u200F\\u2060\\uFEFF]';
const MENTION = new RegExp(
  `<(?:region)?(\\d+)>|(?<!${WORD}|< *)region ?(\\d+)(?!${WORD}|[.,]\\d)`,
  'giu',
);
const NUMBER = '[-+]?(?:\\d+\\.?\\d*|\\.\\d+)';
const NUMBERS = `\\s*${NUMBER}(?:\\s*,\\s*${NUMBER}){1,3}\\s*`;
const COORDINATES = new RegExp(`\\[${NUMBERS}\\]|\\(${NUMBERS}\\)`, 'g');

export function mention(id: number): string {
  return `<region${id}>`;
}

/** Splits a text into words and mentions. `<region7>` counts whatever is known, `region 7` only if region 7 is. */
export function parts(text: string, known: (id: number) => boolean): Part[] {
  const found: Part[] = [];
  let words = 0;
  for (const match of text.matchAll(MENTION)) {
    const id = Number(match[1] ?? match[2]);
    if (match[1] === undefined && !known(id)) continue;
    if (match.index > words) found.push({ text: text.slice(words, match.index) });
    found.push({ region: id, text: match[0] });
    words = match.index + match[0].length;
  }
  if (words < text.length) found.push({ text: text.slice(words) });
  return found;
}

/** The regions that a text mentions, in the order of their first mention. */
export function mentioned(text: string, known: (id: number) => boolean): number[] {
  return [...new Set(parts(text, known).flatMap((part) => ('region' in part ? [part.region] : [])))];
}

/** The same text with regions under other numbers. */
export function renumbered(text: string, numbers: ReadonlyMap<number, number>): string {
  const renamed = (part: Part) => {
    if (!('region' in part)) return part.text;
    return part.text.replace(/\d+/, String(numbers.get(part.region) ?? part.region));
  };
  return parts(text, (id) => numbers.has(id)).map(renamed).join('');
}

/** Puts mentions where a question has coordinates, in their order; as it was if their numbers differ. */
export function withMentions(question: string, ids: readonly number[]): string {
  const places = [...question.matchAll(COORDINATES)].filter(([text]) => isPlace(text));
  if (places.length !== ids.length) return question;
  const left = [...ids];
  return question.replace(COORDINATES, (text) => (isPlace(text) ? mention(left.shift() as number) : text));
}

/** Two numbers are a point, four a box; two whole numbers in square brackets quote a note. */
function isPlace(text: string): boolean {
  const numbers = text.slice(1, -1).split(',');
  if (numbers.length === 4) return true;
  return numbers.length === 2 && (text.startsWith('(') || numbers.every((number) => number.includes('.')));
}

export interface Edit {
  readonly text: string;
  readonly caret: number;
}

/** Writes a mention over what is selected. */
export function inserted(text: string, start: number, end: number, id: number): Edit {
  return written(text, start, end, mention(id));
}

/** Writes words over what is selected, with a space on either side where other words would touch them. */
export function written(text: string, start: number, end: number, words: string): Edit {
  const before = text.slice(0, start);
  const after = text.slice(end);
  const left = before === '' || /[\s([]$/.test(before) ? before : `${before} `;
  const right = /^[\s.,;:!?)\]]/.test(after) ? after : ` ${after}`;
  const caret = left.length + words.length + (right.startsWith(' ') ? 1 : 0);
  return { text: left + words + right, caret };
}

const TYPED = new RegExp(`(?<!${WORD})@(?:region ?)?(\\d+)(?!${WORD}|[.,]\\d)`, 'giu');

/** Writes what was typed as `@1` as a mention, if region 1 is known. */
export function spelled(text: string, known: (id: number) => boolean): string {
  return text.replace(TYPED, (typed, id) => (known(Number(id)) ? mention(Number(id)) : typed));
}

export interface Completion {
  /** Where the `@` or `<` stands. */
  readonly start: number;
  /** Digits typed so far. */
  readonly digits: string;
}

/** A mention that is being typed just before the caret, if one is. */
export function completion(text: string, caret: number): Completion | null {
  const match = /[@<](?:r(?:e(?:g(?:i(?:on?)?)?)?)? ?)?(\d*)$/i.exec(text.slice(0, caret));
  return match && { start: match.index, digits: match[1] ?? '' };
}
