import assert from 'node:assert/strict';
import { test } from 'node:test';
import { chatEvents, connect, events, faultFrom } from '../src/api.ts';

async function* from(text: string): AsyncGenerator<string> {
  yield* text.split('\n');
}

async function collected(text: string): Promise<string[]> {
  const all: string[] = [];
  for await (const data of events(from(text))) all.push(data);
  return all;
}

test('events are read up to the end, comments skipped', async () => {
  assert.deepEqual(await collected('data: 1\n\n: still here\n\ndata:2\ndata: 3\n\ndata: [DONE]\n\ndata: 4\n\n'), ['1', '2\n3']);
});

test('a stream that breaks off is a fault', async () => {
  await assert.rejects(collected('data: 1\n\n'), /too early/);
});

test('boxes are found in a chunk or in its delta', () => {
  const regions = [{ id: 'region7', box: [1, 2, 3, 4] as const }];
  const found = { kind: 'regions', regions: [{ id: 7, box: [1, 2, 3, 4] }] };
  const end = (probability: number | null) => ({ kind: 'finish', reason: 'stop', probability });
  assert.deepEqual([...chatEvents({ regions, choices: [] })], [found]);
  assert.deepEqual([...chatEvents({ choices: [{ delta: { content: 'x', regions }, finish_reason: 'stop' }] })], [
    { kind: 'text', text: 'x' }, found, end(null),
  ]);
  assert.deepEqual([...chatEvents({ choices: [{ delta: { probability: 0.5 }, finish_reason: 'stop' }] })], [end(0.5)]);
  assert.throws(() => [...chatEvents({ error: { message: 'the engine failed' } })], /The engine failed\. Try again/);
});

test('faults say what to do, without the names of fields', () => {
  const param = 'messages[0].content[0].regions[1].box';
  assert.equal(faultFrom(422, { message: `${param}: it is empty`, param, code: 'invalid_region' }).message, 'It is empty. Draw the region anew.');
  assert.match(faultFrom(429, { message: 'too many requests are waiting' }, 5).message, /in 5 seconds/);
  assert.match(faultFrom(400, { code: 'context_length_exceeded', message: 'full' }).message, /new conversation/);
  assert.equal(faultFrom(418, {}).message, 'The server answered with status 418.');
});

/** What a browser keeps for a tab. */
const stored = new Map<string, string>();
Object.assign(globalThis, {
  sessionStorage: { getItem: (name: string) => stored.get(name) ?? null, setItem: (name: string, value: string) => stored.set(name, value) },
});

test('a key is kept once it has worked, and one that no header carries is refused in words', async (context) => {
  const tried: (string | null)[] = [];
  context.mock.method(globalThis, 'fetch', async (_: string, init: RequestInit) => {
    const key = new Headers(init.headers).get('authorization');
    tried.push(key);
    return key === 'Bearer right' ? Response.json({ data: [{ id: 'nano' }] }) : Response.json({}, { status: 401 });
  });
  const keys = ['wrong', 'schlüssel', 'schlüssel\n', '鍵', 'right'];
  const told: [string, string | undefined][] = [];
  const api = connect(async (why) => {
    told.push([why, stored.get('gpt4roi-key')]);
    return keys.shift() ?? null;
  });
  assert.deepEqual(await api.models(), ['nano']);
  assert.deepEqual(tried, [null, 'Bearer wrong', 'Bearer right']);
  assert.equal(stored.get('gpt4roi-key'), 'right');
  assert.ok(told.every(([, kept]) => kept === undefined), 'nothing is kept before it has worked');
  const reasons = [/wants an API key/, /does not take/, /plain ASCII/, /plain ASCII/, /plain ASCII/];
  assert.equal(told.length, reasons.length);
  for (const [index, reason] of reasons.entries()) assert.match(told[index]?.[0] ?? '', reason);
  assert.deepEqual(await api.models(), ['nano']);
  assert.equal(told.length, reasons.length, 'the key that worked is not asked for again');
});

test('a closer look is asked for where it is wanted, and not mentioned where not', async (context) => {
  const bodies: Record<string, unknown>[] = [];
  context.mock.method(globalThis, 'fetch', async (path: string, init: RequestInit) => {
    bodies.push(JSON.parse(init.body as string));
    return new Response(path.endsWith('completions') ? 'data: [DONE]\n\n' : '');
  });
  const api = connect(async () => null);
  const { signal } = new AbortController();
  for (const closer of [true, false]) {
    for await (const _ of api.chat([], { signal, closer, temperature: 0 }));
    for await (const _ of api.describe('sha256:0', [], { signal, closer }));
  }
  const chat = { messages: [], stream: true, temperature: 0 };
  const describe = { image: 'sha256:0', regions: [], detail: 'full', stream: true };
  assert.deepEqual(bodies, [{ ...chat, zoom: 'auto' }, { ...describe, zoom: 'auto' }, chat, describe]);
});

test('too many regions for a closer look are a matter of the switch', () => {
  const message = 'zoom: expected auto for a question about at most 16 regions, got 17';
  assert.match(faultFrom(400, { message, param: 'zoom', code: 'invalid_value' }).message, /too many regions for a closer look.*Switch it off/);
});
