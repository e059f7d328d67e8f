import assert from 'node:assert/strict';
import { test } from 'node:test';
import { completion, inserted, mentioned, parts, renumbered, spelled, withMentions, written } from '../src/mentions.ts';

const known = (id: number) => id <= 3;

/** Mentions in braces. */
const marked = (text: string) => parts(text, known).map((part) => ('region' in part ? `{${part.region}}` : part.text)).join('');

// The same rules as the table in crates/gpt4roi/src/mention.rs.
test('mentions are found as the server finds them', () => {
  const cases: [string, string][] = [
    ['What is <region1>?', 'What is {1}?'],
    ['<1> and <REGION2>', '{1} and {2}'],
    ['region 1, region2. Region 3', '{1}, {2}. {3}'],
    ['<region7> is told to be unknown', '{7} is told to be unknown'],
    ['region 7 is not known, so these are words', 'region 7 is not known, so these are words'],
    ['a <> b, < region1 >, <region>', 'a <> b, < region1 >, <region>'],
    ['subregion1, region1st, region 1.5, region 1,000', 'subregion1, region1st, region 1.5, region 1,000'],
    ['region 1.', '{1}.'],
    ['<region１> and <re\u200bgion1>', '<region１> and <re\u200bgion1>'],
    ['érégion1 éregion1', 'érégion1 éregion1'],
    ['', ''],
  ];
  for (const [text, expected] of cases) assert.equal(marked(text), expected, text);
});

test('the words of all parts are the text', () => {
  for (const text of ['<region1>', 'a <1> b region 2', 'none', '<<region1>>region1']) {
    assert.equal(parts(text, known).map((part) => part.text).join(''), text);
  }
});

test('regions are listed once, in the order of their first mention', () => {
  assert.deepEqual(mentioned('<region2>, <region1> and region 2', known), [2, 1]);
});

test('renumbering swaps without confusion', () => {
  const numbers = new Map([[1, 2], [2, 1]]);
  assert.equal(renumbered('<region1> left of region 2, not <region3>', numbers), '<region2> left of region 1, not <region3>');
});

test('coordinates give way to mentions, notes do not', () => {
  assert.equal(withMentions('What is in [0.1, 0.2, 0.3, 0.4]?', [1]), 'What is in <region1>?');
  assert.equal(withMentions('Is (0.5, .6) like (10,20,30,40)?', [2, 3]), 'Is <region2> like <region3>?');
  assert.equal(withMentions('See [3, 4] and (1) about (120, 80).', [5]), 'See [3, 4] and (1) about <region5>.');
  assert.equal(withMentions('What is in [0.1, 0.2, 0.3, 0.4]?', []), 'What is in [0.1, 0.2, 0.3, 0.4]?');
  assert.equal(withMentions('What is in [0.1, 0.2, 0.3, 0.4]?', [1, 2]), 'What is in [0.1, 0.2, 0.3, 0.4]?');
});

test('a mention is inserted with the spaces that it needs', () => {
  const cases: [string, string][] = [
    ['|', '<region1> |'],
    ['What is|', 'What is <region1> |'],
    ['What is |?', 'What is <region1>|?'],
    ['Is |like', 'Is <region1> |like'],
    ['(|)', '(<region1>|)'],
  ];
  for (const [before, after] of cases) {
    const caret = before.indexOf('|');
    const { text, caret: end } = inserted(before.replace('|', ''), caret, caret, 1);
    assert.equal(`${text.slice(0, end)}|${text.slice(end)}`, after);
  }
  assert.equal(inserted('What is @2 here', 8, 10, 2).text, 'What is <region2> here');
});

test('words that were heard join those that were typed', () => {
  const cases: [string, string, string][] = [
    ['|', 'what is this', 'what is this |'],
    ['What is this|', 'and why', 'What is this and why |'],
    ['What is |?', 'this', 'What is this|?'],
    ['Is <region1> |red', 'really', 'Is <region1> really |red'],
  ];
  for (const [before, heard, after] of cases) {
    const caret = before.indexOf('|');
    const { text, caret: end } = written(before.replace('|', ''), caret, caret, heard);
    assert.equal(`${text.slice(0, end)}|${text.slice(end)}`, after);
  }
});

test('a mention that is being typed is completed', () => {
  assert.deepEqual(completion('What is @', 9), { start: 8, digits: '' });
  assert.deepEqual(completion('What is <regi', 13), { start: 8, digits: '' });
  assert.deepEqual(completion('What is <region12', 17), { start: 8, digits: '12' });
  assert.deepEqual(completion('What is @1 and', 10), { start: 8, digits: '1' });
  assert.equal(completion('What is @1 and', 14), null);
  assert.equal(completion('What is <region1>', 17), null);
});

test('a number behind @ is a mention where there is such a region', () => {
  for (const [typed, expected] of [
    ['What is @1?', 'What is <region1>?'],
    ['(@2) and @region 1, @Region2', '(<region2>) and <region1>, <region2>'],
    ['@1 of @12', '<region1> of @12'],
    ['me@1 and @1st, @1.5, @1,5 or @', 'me@1 and @1st, @1.5, @1,5 or @'],
    ['@1, @2.', '<region1>, <region2>.'],
  ] as const) {
    assert.equal(spelled(typed, known), expected);
  }
});
