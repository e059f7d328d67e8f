// Undo and redo: a present, what came before it and what was undone.

export interface History<T> {
  readonly past: readonly T[];
  readonly present: T;
  readonly future: readonly T[];
  /** What the last change was part of; changes of one step are undone together. */
  readonly step: string | null;
}

const LONGEST = 200;

export function begun<T>(present: T): History<T> {
  return { past: [], present, future: [], step: null };
}

/** A new present. Changes that carry the same `step` one after the other, such as nudges by arrow keys, become one. */
export function changed<T>(history: History<T>, present: T, step: string | null = null): History<T> {
  const joins = step !== null && step === history.step;
  const past = joins ? history.past : [...history.past, history.present].slice(-LONGEST);
  return { past, present, future: [], step };
}

/** A present that differs by something learned, not done: it's no step of its own. */
export function amended<T>(history: History<T>, present: T): History<T> {
  return { ...history, present };
}

export function undone<T>(history: History<T>): History<T> {
  const present = history.past.at(-1);
  if (present === undefined) return history;
  return { past: history.past.slice(0, -1), present, future: [history.present, ...history.future], step: null };
}

export function redone<T>(history: History<T>): History<T> {
  const [present, ...future] = history.future;
  if (present === undefined) return history;
  return { past: [...history.past, history.present], present, future, step: null };
}
