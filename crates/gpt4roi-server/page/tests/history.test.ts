import assert from 'node:assert/strict';
import { test } from 'node:test';
import { amended, begun, changed, type History, redone, undone } from '../src/history.ts';
import { seeded } from './random.ts';

const times = <T>(count: number, change: (state: T) => T, state: T): T =>
  Array.from({ length: count }).reduce<T>((current) => change(current), state);

test('n changes undone n times are as before, and redone n times as after', () => {
  for (let seed = 1; seed <= 50; seed++) {
    const random = seeded(seed);
    const values = Array.from({ length: 1 + Math.floor(random() * 60) }, () => random());
    const before = begun(-1);
    const after = values.reduce<History<number>>((history, value) => changed(history, value), before);
    const back = times(values.length, undone, after);
    assert.equal(back.present, -1);
    assert.deepEqual(back.past, []);
    assert.equal(times(values.length, redone, back).present, values.at(-1));
  }
});

test('any walk of changes, undos and redos keeps one line of states', () => {
  for (let seed = 1; seed <= 50; seed++) {
    const random = seeded(seed);
    let history = begun(0);
    const line = [0];
    let at = 0;
    for (let step = 1; step <= 150; step++) {
      const dice = random();
      if (dice < 0.4) {
        line.splice(++at, Infinity, step);
        history = changed(history, step);
      } else if (dice < 0.7) {
        at = Math.max(0, at - 1);
        history = undone(history);
      } else {
        at = Math.min(line.length - 1, at + 1);
        history = redone(history);
      }
      assert.equal(history.present, line[at]);
    }
  }
});

test('changes of one step are undone together, and steps end at an undo', () => {
  const nudged = ['a', 'b', 'c'].reduce<History<string>>((history, value) => changed(history, value, 'nudge 1'), begun('start'));
  assert.equal(undone(nudged).present, 'start');
  const again = changed(undone(nudged), 'd', 'nudge 1');
  assert.equal(undone(again).present, 'start');
  assert.equal(undone(changed(nudged, 'e', 'nudge 2')).present, 'c');
});

test('what is learned is no step', () => {
  const history = amended(changed(begun('a'), 'b'), 'B');
  assert.equal(history.present, 'B');
  assert.equal(undone(history).present, 'a');
});

test('nothing to undo or redo changes nothing', () => {
  const history = begun(1);
  assert.equal(undone(history), history);
  assert.equal(redone(history), history);
});
