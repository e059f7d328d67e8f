// The state of the page, in one place, and whoever wants to know when it changes.

export class Store<S extends object> {
  #listeners: ((state: S) => void)[] = [];

  constructor(private current: S) {}

  get state(): S {
    return this.current;
  }

  update(change: Partial<S>): void {
    this.current = { ...this.current, ...change };
    for (const listener of this.#listeners) listener(this.current);
  }

  subscribe(listener: (state: S) => void): void {
    this.#listeners.push(listener);
    listener(this.current);
  }
}
