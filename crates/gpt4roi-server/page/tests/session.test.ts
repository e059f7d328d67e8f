import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Api } from '../src/api.ts';
import { type Conversation, question, started } from '../src/conversation.ts';
import type { Picture } from '../src/picture.ts';
import type { Region } from '../src/regions.ts';
import { Session } from '../src/session.ts';
import { openStorage, type Storage } from '../src/storage.ts';

// What a browser has and Node has not. Without a database, conversations are kept in memory.
const kept = new Map<string, string>();
Object.assign(globalThis, {
  localStorage: { getItem: (key: string) => kept.get(key) ?? null, setItem: (key: string, value: string) => kept.set(key, value) },
  createImageBitmap: async () => ({ width: 200, height: 100, close: () => undefined }),
});

const PICTURE: Picture = { id: 'p', name: 'scene.png', width: 200, height: 100, file: new Blob(), handle: 'sha256:0' };
const ONE: Region = { id: 1, shape: { kind: 'box', box: [0, 0, 10, 10] } };
const TWO: Region = { id: 2, shape: { kind: 'point', at: [50, 50] } };
const ASKED = { ...question('What is <region1>?', [ONE]), answer: 'An octopus.', state: 'done' as const };

/** A server that answers everything with the same words. */
const API: Api = {
  models: async () => [],
  upload: async () => ({ id: 'sha256:0', width: 200, height: 100 }),
  async *chat() {
    yield { kind: 'text', text: 'It is red.' };
    yield { kind: 'finish', reason: 'stop', probability: null };
  },
  async *describe(_, regions) {
    for (const index of regions.keys()) yield { index, text: `It is thing ${index + 1}.`, fault: null, box: null, probability: null };
  },
};

interface Opened {
  readonly session: Session;
  readonly storage: Storage;
  readonly said: string[];
}

/** A page on which a conversation was opened. */
async function opened(conversation: Partial<Conversation> = {}, api = API): Promise<Opened> {
  const { storage } = openStorage();
  await storage.savePicture(PICTURE);
  await storage.save({ ...started('c', PICTURE.id, PICTURE.name, 0), ...conversation });
  return resumed(storage, api);
}

/** Another page in the same browser. */
async function resumed(storage: Storage, api = API): Promise<Opened> {
  const said: string[] = [];
  const say = (text: string) => void said.push(text);
  const session = new Session({ api, storage, announce: say, notify: say });
  await session.resume();
  return { session, storage, said };
}

const draftOf = ({ session }: Opened) => session.store.state.conversation?.draft;

test('nothing is left where no question is being changed', async () => {
  const page = await opened({ rounds: [ASKED] });
  page.session.draft('And what');
  page.session.leaveEditing();
  assert.equal(draftOf(page), 'And what');
});

test('a question that is changed gives the draft its place back', async () => {
  const page = await opened({ rounds: [ASKED, { ...ASKED, question: 'Where?' }], regions: [ONE] });
  const { session, storage } = page;
  session.draft('And what');
  session.edit(0);
  assert.equal(draftOf(page), 'What is <region1>?');
  session.edit(1);
  assert.equal(draftOf(page), 'Where?');
  await session.save();
  assert.equal((await storage.conversations())[0]?.draft, 'And what', 'a reload brings it back');
  session.leaveEditing();
  assert.equal(draftOf(page), 'And what');
  session.edit(1);
  await session.ask('What colour is <region1>?');
  assert.equal(draftOf(page), 'And what');
  assert.deepEqual(session.store.state.conversation?.rounds.map((round) => round.question), ['What is <region1>?', 'What colour is <region1>?']);
});

test('only a conversation in which nothing was done makes room for the next picture', async () => {
  const cases: [Partial<Conversation>, number][] = [
    [{}, 1],
    [{ draft: ' ' }, 1],
    [{ draft: 'And what' }, 2],
    [{ title: 'The octopus' }, 2],
    [{ regions: [ONE] }, 2],
    [{ rounds: [ASKED] }, 2],
  ];
  for (const [conversation, left] of cases) {
    const { session, storage } = await opened(conversation);
    await session.open(new Blob([], { type: 'image/png' }), 'next.png');
    await session.save();
    assert.equal((await storage.conversations()).length, left, JSON.stringify(conversation));
  }
});

test('a page that did nothing writes nothing', async () => {
  const { session, storage } = await opened({ rounds: [{ ...ASKED, state: 'running' }], regions: [ONE] });
  const before = await storage.conversations();
  await session.save();
  assert.deepEqual(await storage.conversations(), before);
});

test('of two pages with one conversation, the one that saves later goes on in a copy', async () => {
  const first = await opened({ rounds: [ASKED], regions: [ONE] });
  const second = await resumed(first.storage);
  first.session.draft('Of the first');
  await first.session.save();
  second.session.draft('Of the second');
  await Promise.all([second.session.save(), second.session.save()]);
  for (const page of [first, second]) {
    page.session.draft(`${draftOf(page)} page`);
    await page.session.save();
  }
  const drafts = (await first.storage.conversations()).map(({ id, draft }) => [id === 'c', draft]);
  assert.deepEqual(drafts.sort(), [[false, 'Of the second page'], [true, 'Of the first page']]);
  assert.deepEqual([first.said, second.said.length], [[], 1]);
  assert.match(second.said[0] ?? '', /goes on in a copy/);
});

test('an answer that is coming goes into the copy', async () => {
  let answer = () => {};
  const answered = new Promise<void>((resolve) => (answer = resolve));
  const slow: Api = {
    ...API,
    async *chat(...asked) {
      await answered;
      yield* API.chat(...asked);
    },
  };
  const first = await opened({ regions: [ONE] }, slow);
  const second = await resumed(first.storage);
  second.session.draft('Of the second');
  await second.session.save();
  const asked = first.session.ask('What colour is <region1>?');
  await first.session.save();
  answer();
  await asked;
  await first.session.save();
  const rounds = (await first.storage.conversations()).map(({ id, rounds }) => [id === 'c', rounds.map(({ answer, state }) => [answer, state])]);
  assert.deepEqual(rounds.sort(), [[false, [['It is red.', 'done']]], [true, []]]);
});

test('a conversation is renamed and opened as it is by now', async () => {
  const page = await opened();
  const { session, storage } = page;
  const listed = { ...started('d', PICTURE.id, 'D', 0), revision: 1 };
  await storage.save({ ...listed, draft: 'Typed since', revision: 2 });
  await session.rename(listed, 'The octopus');
  const renamed = await storage.conversation('d');
  assert.deepEqual([renamed?.title, renamed?.draft], ['The octopus', 'Typed since']);
  await session.switchTo(listed);
  assert.equal(draftOf(page), 'Typed since');
});

test('what was answered is announced, of one region or of each', async () => {
  const { session, said } = await opened({ regions: [ONE, TWO] });
  await session.ask('What colour is <region1>?');
  assert.equal(said.at(-1), 'It is red.');
  await session.describeAll();
  assert.equal(said.at(-1), 'region1: It is thing 1.\nregion2: It is thing 2.');
});

test('an imported region takes no number that was talked about', async () => {
  const { session, said } = await opened({ rounds: [ASKED] });
  session.import(JSON.stringify([{ id: 'region1', box: [5, 5, 9, 9] }, { id: 1234567, box: [6, 6, 9, 9] }, { id: 3, box: [7, 7, 9, 9] }]));
  assert.deepEqual(session.regions.map(({ id }) => id), [4, 5, 3]);
  assert.equal(said.at(-1), '3 regions imported. 2 got a new number, since theirs is taken or above 999.');
});

test('a closer look is taken where the conversation wants it, in what follows and in the next one', async () => {
  const looks: boolean[] = [];
  const api: Api = {
    ...API,
    chat: (messages, options) => (looks.push(options.closer), API.chat(messages, options)),
    describe: (image, regions, options) => (looks.push(options.closer), API.describe(image, regions, options)),
  };
  const { session, storage } = await opened({ regions: [ONE] }, api);
  await session.ask('What colour is <region1>?');
  session.lookCloser(true);
  await session.ask('What is <region1>?');
  await session.describeAll();
  await session.save();
  assert.equal((await resumed(storage)).session.store.state.conversation?.closer, true);
  await session.again();
  await session.describeAll();
  session.lookCloser(false);
  await session.retry();
  assert.deepEqual(looks, [false, true, true, true, false]);
});
