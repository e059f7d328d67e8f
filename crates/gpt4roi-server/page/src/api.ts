// The server's API: models, pictures, questions, descriptions in bulk.

import type { ResolvedRegion, WireMessage, WireRegion } from './conversation.ts';
import type { Box } from './regions.ts';

/** What went wrong, in words that say what to do about it. */
export class Fault extends Error {
  constructor(
    message: string,
    readonly status = 0,
    readonly code = '',
  ) {
    super(message);
  }
}

export interface Upload {
  readonly id: string;
  readonly width: number;
  readonly height: number;
}

export type ChatEvent =
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'regions'; readonly regions: readonly ResolvedRegion[] }
  | { readonly kind: 'finish'; readonly reason: string; readonly probability: number | null };

/** A description of the region at this place of the list that was sent, or why there is none. */
export interface Description {
  readonly index: number;
  readonly text: string;
  readonly fault: string | null;
  readonly box: Box | null;
  readonly probability: number | null;
}

export interface Api {
  models(): Promise<string[]>;
  upload(picture: Blob): Promise<Upload>;
  chat(messages: readonly WireMessage[], options: ChatOptions): AsyncGenerator<ChatEvent>;
  describe(image: string, regions: readonly WireRegion[], options: LookOptions): AsyncGenerator<Description>;
}

export interface LookOptions {
  readonly signal: AbortSignal;
  /** Whether small regions are looked at in crops of their own. */
  readonly closer: boolean;
}

export interface ChatOptions extends LookOptions {
  /** 0 always gives the likeliest answer. */
  readonly temperature: number;
}

const KEY = 'gpt4roi-key';
const WANTED = 'This server wants an API key. It is the one that “gpt4roi serve” was started with.';
const REFUSED = 'The server does not take this key. Try another.';
const UNFIT = 'A key can have letters, digits and signs of plain ASCII only; this one has others. Try another.';

/** The API at this page's own address; `askKey` is asked for a key where the server wants one, and told why. */
export function connect(askKey: (why: string) => Promise<string | null>): Api {
  async function send(path: string, init: RequestInit): Promise<Response> {
    for (let key = sessionStorage.getItem(KEY); ; ) {
      const fit = key === null || /^[ -~]*$/.test(key);
      const response = fit ? await reach(path, withKey(init, key)) : null;
      if (response && response.status !== 401) {
        if (key !== null) sessionStorage.setItem(KEY, key);
        return response.ok ? response : Promise.reject(await faultOf(response));
      }
      key = await askKey(key === null ? WANTED : fit ? REFUSED : UNFIT);
      if (key === null) throw new Fault('The server wants an API key. Try again to give one.', 401);
    }
  }

  const post = (path: string, body: unknown, signal: AbortSignal, accept: string) =>
    send(path, {
      method: 'POST',
      headers: { 'content-type': 'application/json', accept },
      body: JSON.stringify(body),
      signal,
    });

  return {
    async models() {
      const { data } = (await (await send('v1/models', {})).json()) as { data: { id: string }[] };
      return data.map(({ id }) => id);
    },

    async upload(picture) {
      const response = await send('v1/images', {
        method: 'POST',
        headers: { 'content-type': picture.type || 'application/octet-stream' },
        body: picture,
      });
      return (await response.json()) as Upload;
    },

    async *chat(messages, { signal, closer, temperature }) {
      const body = { messages, stream: true, temperature, ...zoom(closer) };
      const response = await post('v1/chat/completions', body, signal, 'text/event-stream');
      for await (const data of events(lines(response))) yield* chatEvents(JSON.parse(data));
    },

    async *describe(image, regions, { signal, closer }) {
      const body = { image, regions, detail: 'full', stream: true, ...zoom(closer) };
      const response = await post('v1/regions/describe', body, signal, 'application/x-ndjson');
      const places = new Map(regions.map(({ id }, index) => [id, index]));
      for await (const line of lines(response)) {
        if (line.trim() !== '') yield* descriptions(JSON.parse(line), places);
      }
    },
  };
}

function zoom(closer: boolean): { readonly zoom?: 'auto' } {
  return closer ? { zoom: 'auto' } : {};
}

function withKey(init: RequestInit, key: string | null): RequestInit {
  const headers = new Headers(init.headers);
  if (key !== null) headers.set('authorization', `Bearer ${key}`);
  return { ...init, headers };
}

async function reach(path: string, init: RequestInit): Promise<Response> {
  try {
    return await fetch(path, init);
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new Fault('The server does not answer. Is “gpt4roi serve” still running? Start it, then try again.');
  }
}

interface WireFault {
  readonly message?: string;
  readonly code?: string | number | null;
  /** The field of the request that is wrong; of no use to people. */
  readonly param?: string | null;
}

async function faultOf(response: Response): Promise<Fault> {
  const body = (await response.json().catch(() => null)) as { error?: WireFault } | null;
  const wait = Number(response.headers.get('retry-after'));
  return faultFrom(response.status, body?.error ?? {}, wait);
}

/** Says what to do, where the server only says what is wrong. */
export function faultFrom(status: number, { message, code, param }: WireFault, retryAfter = 0): Fault {
  if (param === 'zoom') return new Fault(TOO_MANY_FOR_CLOSER, status, String(code ?? ''));
  const said = message ?? `The server answered with status ${status}.`;
  const plain = sentence(param && said.startsWith(`${param}: `) ? said.slice(param.length + 2) : said);
  const advice = ADVICE[String(code)] ?? adviceFor(status, retryAfter);
  return new Fault(advice ? `${plain} ${advice}` : plain, status, String(code ?? ''));
}

const TOO_MANY_FOR_CLOSER =
  'These are too many regions for a closer look; those of earlier questions count, too. Switch it off, or begin a new conversation.';

const ADVICE: Readonly<Record<string, string>> = {
  context_length_exceeded: 'Begin a new conversation about the picture, or ask a shorter question.',
  image_quota_exceeded: 'It forgets pictures that nobody asks about; try again in some minutes.',
  invalid_region: 'Draw the region anew.',
};

function adviceFor(status: number, retryAfter: number): string | null {
  if (status === 413) return 'Choose a smaller picture.';
  if (status === 429) return retryAfter > 1 ? `Try again in ${retryAfter} seconds.` : 'Try again in a moment.';
  if (status === 503 || status === 504) return 'Try again in a moment.';
  return status >= 500 ? 'Try again; if it happens once more, the server’s log says why.' : null;
}

function sentence(text: string): string {
  const capital = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?…]$/.test(capital) ? capital : `${capital}.`;
}

/** The lines of a reply, as they arrive. */
async function* lines(response: Response): AsyncGenerator<string> {
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = (await reader?.read().catch(lost)) ?? { value: undefined, done: true };
    if (done) break;
    const pieces = (rest + value).split('\n');
    rest = pieces.pop() as string;
    for (const line of pieces) yield line.endsWith('\r') ? line.slice(0, -1) : line;
  }
  if (rest !== '') yield rest;
}

function lost(error: unknown): never {
  if (error instanceof DOMException && error.name === 'AbortError') throw error;
  throw new Fault('The connection broke before the answer was complete. Try again.');
}

/** The data of server-sent events, up to `[DONE]`. */
export async function* events(source: AsyncIterable<string>): AsyncGenerator<string> {
  let data: string[] = [];
  for await (const line of source) {
    if (line.startsWith('data:')) data.push(line.slice(line[5] === ' ' ? 6 : 5));
    else if (line === '' && data.length > 0) {
      const whole = data.join('\n');
      if (whole === '[DONE]') return;
      yield whole;
      data = [];
    }
  }
  throw new Fault('The answer ended too early. Try again.');
}

interface WireResolved {
  readonly id: string | number;
  readonly box: Box;
}

interface Chunk {
  readonly error?: WireFault;
  readonly regions?: readonly WireResolved[];
  readonly choices?: readonly {
    readonly delta?: {
      readonly content?: string | null;
      readonly regions?: readonly WireResolved[];
      readonly probability?: number | null;
    };
    readonly finish_reason?: string | null;
  }[];
}

/** What a chunk of a stream says; boxes may stand in it or in its `delta`. */
export function* chatEvents(chunk: Chunk): Generator<ChatEvent> {
  if (chunk.error) throw faultFrom(500, chunk.error);
  const choice = chunk.choices?.[0];
  if (choice?.delta?.content) yield { kind: 'text', text: choice.delta.content };
  const regions = chunk.regions ?? choice?.delta?.regions;
  if (regions) yield { kind: 'regions', regions: regions.map(({ id, box }) => ({ id: numberOf(id), box })) };
  if (choice?.finish_reason) {
    yield { kind: 'finish', reason: choice.finish_reason, probability: choice.delta?.probability ?? null };
  }
}

interface WireDescription {
  readonly error?: WireFault | null;
  readonly index?: number;
  readonly id?: string | number;
  readonly text?: string;
  readonly box?: Box;
  readonly probability?: number | null;
}

/** What a line of a bulk reply says; lines that describe no region, such as the last one, say nothing. */
function* descriptions(line: WireDescription, places: ReadonlyMap<string, number>): Generator<Description> {
  const index = line.index ?? places.get(`region${numberOf(line.id ?? '')}`);
  if (index === undefined) {
    if (line.error) throw faultFrom(500, line.error);
    return;
  }
  const fault = line.error ? sentence(line.error.message ?? 'It could not be described') : null;
  yield { index, text: line.text ?? '', fault, box: line.box ?? null, probability: line.probability ?? null };
}

function numberOf(id: string | number): number {
  return Number(String(id).replace(/\D+/g, ''));
}
