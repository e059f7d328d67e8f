// What can be done on the page: open pictures, draw, ask. All changes of the state go through here.

import { type Api, type Description, Fault } from './api.ts';
import type { Tool } from './canvas.ts';
import {
  bulk, type Conversation, declared, messages, nextId, question, type ResolvedRegion, revised, type Round, settled, spoken, started,
  taken, titleOf, unknownMentions, wireShape, withRound,
} from './conversation.ts';
import { amended, begun, changed, type History, redone, undone } from './history.ts';
import { HIGHEST, numbered, readRegions } from './import.ts';
import { freshId, openPicture, type Picture, reopened } from './picture.ts';
import { described, type Region, sameShape, type Shape } from './regions.ts';
import type { Storage } from './storage.ts';
import { Store } from './store.ts';

export interface State {
  readonly conversation: Conversation | null;
  readonly picture: Picture | null;
  readonly history: History<readonly Region[]>;
  readonly selection: readonly number[];
  /** The region that is pointed at, on the picture or in words. */
  readonly lit: number | null;
  readonly tool: Tool;
  readonly editing: Editing | null;
}

/** An earlier question is being changed. */
export interface Editing {
  /** The round that it began. */
  readonly index: number;
  /** What had been typed when it took the place of that. */
  readonly draft: string;
}

export interface Surroundings {
  readonly api: Api;
  readonly storage: Storage;
  /** Says something to people who listen to the page. */
  announce(text: string): void;
  /** Says something to everyone, with a way back where there is one. */
  notify(text: string, action?: { readonly label: string; run(): void }): void;
}

const CURRENT = 'gpt4roi-current';
/** How much a second try may differ from the likeliest answer. */
const VARIED = 0.7;

export class Session {
  readonly store = new Store<State>({
    conversation: null,
    picture: null,
    history: begun<readonly Region[]>([]),
    selection: [],
    lit: null,
    tool: 'box',
    editing: null,
  });
  #running: Run | null = null;
  /** The conversation as the storage has it. */
  #saved: Conversation | null = null;
  #saving = 0;
  #saves = Promise.resolve();

  constructor(private readonly around: Surroundings) {
    this.store.subscribe(() => this.#saveSoon());
  }

  get regions(): readonly Region[] {
    return this.store.state.history.present;
  }

  // Conversations and pictures.

  /** Goes on where the last visit ended, unless a picture was opened meanwhile. */
  async resume(): Promise<void> {
    const all = await this.around.storage.conversations();
    const last = all.find(({ id }) => id === localStorage.getItem(CURRENT)) ?? all[0];
    if (last && !this.store.state.conversation) await this.switchTo(last);
  }

  /** Opens a conversation as it is by now: this page or another may have gone on with it since it was listed. */
  async switchTo(listed: Conversation): Promise<void> {
    this.stop();
    await this.save();
    const conversation = (await this.around.storage.conversation(listed.id)) ?? listed;
    const picture = await this.around.storage.picture(conversation.picture);
    if (!picture) throw new Fault('The picture of this conversation is gone. Delete the conversation, or begin a new one.');
    // Nothing was done to it yet: another page may still be at work on it.
    this.#saved = { ...conversation, rounds: conversation.rounds.map(interrupted) };
    this.#show(this.#saved, picture);
  }

  /** A picture begins a conversation; one in which nothing was done yet makes room for it. */
  async open(file: Blob, name: string): Promise<void> {
    const picture = await openPicture(file, name);
    this.stop();
    await this.#leave();
    await this.around.storage.savePicture(picture);
    this.#show(started(freshId(), picture.id, name, Date.now()), picture);
    this.around.announce(`Picture ${name}, ${picture.width} by ${picture.height} pixels`);
  }

  /** Another conversation about the same picture, with the same regions. */
  async again(): Promise<void> {
    const { conversation, picture } = this.store.state;
    if (!conversation || !picture) return;
    this.stop();
    await this.save();
    const { closer } = conversation;
    this.#show({ ...started(freshId(), picture.id, picture.name, Date.now()), regions: this.regions, closer }, picture);
  }

  async rename({ id }: Conversation, title: string): Promise<void> {
    const { storage } = this.around;
    const current = this.store.state.conversation;
    if (current?.id === id) return this.store.update({ conversation: { ...current, title } });
    const stored = await storage.conversation(id);
    if (stored) await storage.save(revised({ ...stored, title }));
  }

  /** Deletes a conversation; the page says so and can bring it back. */
  async remove(conversation: Conversation): Promise<void> {
    const { storage } = this.around;
    const current = this.store.state.conversation?.id === conversation.id;
    if (current) this.stop();
    if (current) await this.save();
    const kept = (await storage.conversation(conversation.id)) ?? conversation;
    const picture = await storage.picture(kept.picture);
    if (current) this.#close();
    await storage.remove(kept);
    const restore = async () => {
      if (picture) await storage.savePicture(picture);
      await storage.save(kept);
      await this.switchTo(kept);
    };
    this.around.notify(`“${kept.title}” is deleted.`, { label: 'Undo', run: () => void restore() });
    if (current) await this.resume();
  }

  #show(conversation: Conversation, picture: Picture): void {
    localStorage.setItem(CURRENT, conversation.id);
    const history = begun(conversation.regions);
    this.store.update({ conversation, picture, history, selection: [], lit: null, editing: null });
  }

  #close(): void {
    this.#saved = null;
    this.store.update({ conversation: null, picture: null, history: begun<readonly Region[]>([]), selection: [], editing: null });
  }

  async #leave(): Promise<void> {
    await this.save();
    const { conversation, picture } = this.store.state;
    if (conversation && untouched({ ...conversation, regions: this.regions }, picture?.name)) {
      this.#close();
      await this.around.storage.remove(conversation);
    }
  }

  #saveSoon(): void {
    clearTimeout(this.#saving);
    this.#saving = setTimeout(() => void this.save(), 300) as unknown as number;
  }

  /** Saves what was changed. One save waits for the other, so that the page does not take its own for another's. */
  save(): Promise<void> {
    clearTimeout(this.#saving);
    this.#saves = this.#saves.then(() => this.#save());
    return this.#saves;
  }

  async #save(): Promise<void> {
    const { conversation, picture, editing } = this.store.state;
    if (!conversation || !picture || (this.#saved === conversation && conversation.regions === this.regions)) return;
    const whole = revised({ ...conversation, regions: this.regions });
    this.#saved = whole;
    this.store.update({ conversation: whole });
    // A reload ends the changing of a question, which is still in its round; what was typed before would be nowhere.
    const draft = editing?.draft || whole.draft;
    const saved = await this.#keepWith(picture, { ...whole, draft }).catch((error: unknown) => {
      this.around.notify(`The browser could not save the conversation: ${wordsOf(error)}. Export it if you need it.`);
      return true;
    });
    if (saved || this.store.state.conversation?.id !== whole.id) return;
    this.#goOnInCopy();
    await this.#save();
  }

  /** Another page may have deleted the conversation that this one goes on with, and its picture along with it. */
  async #keepWith(picture: Picture, conversation: Conversation): Promise<boolean> {
    const { storage } = this.around;
    const saved = await storage.save(conversation);
    if (saved && !(await storage.picture(picture.id))) await storage.savePicture(picture);
    return saved;
  }

  // Regions.

  choose(tool: Tool): void {
    this.store.update({ tool });
  }

  light(id: number | null): void {
    if (this.store.state.lit !== id) this.store.update({ lit: id });
  }

  select(id: number | null, more: boolean): void {
    const { selection } = this.store.state;
    if (id === null) return this.store.update({ selection: [] });
    const others = selection.filter((other) => other !== id);
    if (!more) return this.store.update({ selection: [id] });
    this.store.update({ selection: others.length < selection.length ? others : [...others, id] });
  }

  draw(shape: Shape): void {
    const { conversation, history } = this.store.state;
    if (!conversation) return;
    const region: Region = { id: nextId(this.regions, conversation.rounds), shape };
    this.store.update({ history: changed(history, [...this.regions, region]), selection: [region.id] });
    this.around.announce(`${described(region)}, drawn`);
  }

  reshape(id: number, shape: Shape, step: string): void {
    const regions = this.regions.map((region) => (region.id === id ? { id, shape } : region));
    this.store.update({ history: changed(this.store.state.history, regions, step) });
    this.around.announce(described({ id, shape }));
  }

  removeSelected(): void {
    const { selection, history } = this.store.state;
    const regions = this.regions.filter(({ id }) => !selection.includes(id));
    if (regions.length === this.regions.length) return;
    this.store.update({ history: changed(history, regions), selection: [], lit: null });
    this.around.announce(`Region ${selection.join(', ')} deleted`);
  }

  undo(): void {
    this.#travel(undone(this.store.state.history), 'Undone');
  }

  redo(): void {
    this.#travel(redone(this.store.state.history), 'Redone');
  }

  #travel(history: History<readonly Region[]>, what: string): void {
    if (history === this.store.state.history) return;
    const selection = this.store.state.selection.filter((id) => history.present.some((region) => region.id === id));
    this.store.update({ history, selection, lit: null });
    this.around.announce(`${what}: ${history.present.length} regions`);
  }

  /** Adds the regions of a file; they keep their numbers where these are free, on the picture and in what was said. */
  import(text: string): void {
    const { conversation, picture, history } = this.store.state;
    if (!conversation || !picture) throw new Fault('Open a picture first; then import its regions.');
    const { regions: found, outside } = readRegions(text, picture);
    const added = numbered(found, taken(this.regions, conversation.rounds));
    this.store.update({ history: changed(history, [...this.regions, ...added]) });
    const left = outside > 0 ? ` ${outside} lie outside the picture and were left out.` : '';
    const others = found.filter(({ id }, index) => id !== null && id !== added[index]?.id).length;
    const renamed = others > 0 ? ` ${others} got a new number, since theirs is taken or above ${HIGHEST}.` : '';
    this.around.notify(`${found.length === 1 ? 'One region' : `${found.length} regions`} imported.${left}${renamed}`);
  }

  // Questions.

  draft(draft: string): void {
    const { conversation } = this.store.state;
    if (conversation && conversation.draft !== draft) this.store.update({ conversation: { ...conversation, draft } });
  }

  /** Whether the next answers are to come from a closer look at small regions. */
  lookCloser(closer: boolean): void {
    const { conversation } = this.store.state;
    if (conversation) this.store.update({ conversation: { ...conversation, closer } });
  }

  /** Asks what is in the draft; or asks it in place of the question that is being changed, and goes on with the draft. */
  async ask(text: string): Promise<void> {
    const { editing } = this.store.state;
    const unknown = unknownMentions(text, this.regions);
    if (unknown.length > 0) {
      throw new Fault(`There is no region ${unknown.join(' and no region ')} on the picture. Draw it, or take it out of the question.`);
    }
    if (editing) await this.#branch(editing.index);
    await this.#begin(question(text, this.regions), editing?.draft ?? '');
  }

  async describeAll(): Promise<void> {
    await this.#begin(bulk(this.regions), this.store.state.conversation?.draft ?? '');
  }

  stop(): void {
    this.#running?.abort.abort();
    this.#running = null;
  }

  /** Asks the last question again, about its regions as they are now. What was answered is answered with some variation. */
  async retry(): Promise<void> {
    const { conversation } = this.store.state;
    const last = conversation?.rounds.at(-1);
    if (!conversation || !last || this.#running) return;
    const now = last.regions.map((asked) => this.regions.find(({ id }) => id === asked.id) ?? asked);
    const again = last.kind === 'chat' ? question(last.question, now) : bulk(now);
    const temperature = last.state === 'done' ? VARIED : 0;
    this.store.update({ conversation: withRound(conversation, conversation.rounds.length - 1, again) });
    await this.#run(temperature);
  }

  /** Puts a question in the place of the draft; asking it replaces it and what followed. */
  edit(index: number): void {
    const { conversation, editing } = this.store.state;
    const round = conversation?.rounds[index];
    if (!conversation || !round) return;
    const draft = editing?.draft ?? conversation.draft;
    this.store.update({ editing: { index, draft }, conversation: { ...conversation, draft: round.question } });
  }

  /** Leaves the question that is being changed as it was, and goes on with the draft. */
  leaveEditing(): void {
    const { conversation, editing } = this.store.state;
    if (!conversation || !editing) return;
    this.store.update({ editing: null, conversation: { ...conversation, draft: editing.draft } });
  }

  /** Cuts the conversation before a round. Where later rounds would be lost, it goes on in a copy and stays as it was. */
  async #branch(index: number): Promise<void> {
    this.stop();
    const { conversation } = this.store.state;
    if (!conversation) return;
    const followed = conversation.rounds.length > index + 1;
    if (followed) await this.save();
    if (followed) this.#goOnInCopy();
    const branch = this.store.state.conversation as Conversation;
    this.store.update({ conversation: { ...branch, rounds: branch.rounds.slice(0, index) }, editing: null });
  }

  /** Leaves the conversation in the list as it is there. An answer that is coming goes into the copy. */
  #goOnInCopy(): void {
    const copy = { ...(this.store.state.conversation as Conversation), id: freshId(), revision: 0 };
    if (this.#running) this.#running.conversation = copy.id;
    localStorage.setItem(CURRENT, copy.id);
    this.store.update({ conversation: copy });
    this.around.notify('The conversation goes on in a copy. As it was, it is still in the list.');
  }

  async #begin(round: Round, draft: string): Promise<void> {
    const { conversation } = this.store.state;
    if (!conversation || this.#running) return;
    const unnamed = round.kind === 'chat' && conversation.title === this.store.state.picture?.name;
    const title = unnamed ? titleOf(round.question) : conversation.title;
    const rounds = [...conversation.rounds, round];
    this.store.update({ conversation: { ...conversation, title, rounds, draft, changed: Date.now() } });
    await this.#run(0);
  }

  /** Has the last round answered. */
  async #run(temperature: number): Promise<void> {
    const { id, rounds } = this.store.state.conversation as Conversation;
    const run: Run = { abort: new AbortController(), conversation: id };
    const { signal } = run.abort;
    this.#running = run;
    const change: Change = (update) => this.#changeRound(run.conversation, rounds.length - 1, update);
    try {
      const answer = rounds.at(-1)?.kind === 'bulk' ? this.#describe : this.#chat;
      await this.#withPicture((handle) => answer.call(this, handle, change, signal, temperature));
      if (signal.aborted) throw signal.reason;
      change((round) => (round.state === 'running' ? { ...round, state: 'done' } : round));
    } catch (error) {
      if (signal.aborted) change((round) => ({ ...round, state: 'stopped' }));
      else change((round) => ({ ...round, state: 'failed', fault: wordsOf(error) }));
    } finally {
      if (this.#running === run) this.#running = null;
      this.store.update({});
      const last = this.store.state.conversation?.rounds.at(-1);
      if (last && this.store.state.conversation?.id === run.conversation) this.around.announce(last.fault ?? spoken(last));
    }
  }

  get asking(): boolean {
    return this.#running !== null;
  }

  async #chat(handle: string, change: Change, signal: AbortSignal, temperature: number): Promise<void> {
    const { rounds, closer } = this.store.state.conversation as Conversation;
    const sent = messages(rounds, this.regions, handle);
    for await (const event of this.around.api.chat(sent, { signal, closer, temperature })) {
      if (event.kind === 'text') change((round) => ({ ...round, answer: round.answer + event.text }));
      else if (event.kind === 'regions') this.#settle(change, event.regions, declared(sent));
      else {
        const { reason, probability } = event;
        change((round) => ({ ...round, probability, state: reason === 'length' ? 'cut' : 'done' }));
      }
    }
  }

  #settle(change: Change, resolved: readonly ResolvedRegion[], known: ReadonlySet<number>): void {
    change((round) => {
      const { history, conversation } = this.store.state;
      const next = nextId(this.regions, conversation?.rounds ?? []);
      const result = settled(round, resolved, this.regions, known, next);
      const { fresh } = result;
      const step = fresh.length > 0 ? changed(history, result.regions) : amended(history, result.regions);
      this.store.update({ history: step });
      if (fresh.length > 0) this.around.announce(`Region ${fresh.join(', ')} added from the question`);
      return result.round;
    });
  }

  async #describe(handle: string, change: Change, signal: AbortSignal): Promise<void> {
    const { rounds, closer } = this.store.state.conversation as Conversation;
    const { regions } = rounds.at(-1) as Round;
    const sent = regions.map(({ id, shape }) => ({ id: `region${id}`, ...wireShape(shape) }));
    for await (const description of this.around.api.describe(handle, sent, { signal, closer })) {
      change((round) => withDescription(round, description));
      const asked = regions[description.index];
      if (asked && description.box) this.#learn({ ...asked, read: description.box });
    }
  }

  /** Takes in which box was read for a region, unless it has been moved since. */
  #learn(read: Region): void {
    const regions = this.regions.map((region) => (region.id === read.id && sameShape(region.shape, read.shape) ? read : region));
    this.store.update({ history: amended(this.store.state.history, regions) });
  }

  #changeRound(conversation: string, index: number, update: (round: Round) => Round): void {
    const current = this.store.state.conversation;
    if (current?.id !== conversation) return;
    const next = update(current.rounds[index] as Round);
    this.store.update({ conversation: withRound(this.store.state.conversation as Conversation, index, next) });
  }

  /** Does something with the server's handle of the picture. The server forgets pictures; the page does not. */
  async #withPicture(use: (handle: string) => Promise<void>): Promise<void> {
    try {
      await use(await this.#handle());
    } catch (error) {
      if (!(error instanceof Fault && error.code === 'image_not_found')) throw error;
      this.#keep({ ...(this.store.state.picture as Picture), handle: null });
      await use(await this.#handle());
    }
  }

  async #handle(): Promise<string> {
    const picture = this.store.state.picture as Picture;
    if (picture.handle !== null) return picture.handle;
    const upload = await this.around.api.upload(picture.file);
    if (upload.width === picture.width && upload.height === picture.height) {
      this.#keep({ ...picture, handle: upload.id });
      return upload.id;
    }
    // The server sees the file otherwise than the browser shows it: it gets what is shown.
    const shown = await reopened(picture);
    const { id } = await this.around.api.upload(shown.file);
    this.#keep({ ...shown, handle: id });
    return id;
  }

  #keep(picture: Picture): void {
    if (this.store.state.picture?.id === picture.id) this.store.update({ picture });
    void this.around.storage.savePicture(picture);
  }
}

/** An answer that is coming. */
interface Run {
  readonly abort: AbortController;
  /** The one that it belongs to, which may go on in a copy meanwhile. */
  conversation: string;
}

type Change = (update: (round: Round) => Round) => void;

/** Whether nothing was done yet in a conversation about a picture of this name. */
function untouched({ rounds, regions, draft, title }: Conversation, picture: string | undefined): boolean {
  return rounds.length === 0 && regions.length === 0 && draft.trim() === '' && title === picture;
}

/** A round that was being answered when the page was left. */
function interrupted(round: Round): Round {
  return round.state === 'running' ? { ...round, state: 'stopped' } : round;
}

function withDescription(round: Round, { index, text, fault, box, probability }: Description): Round {
  const region = round.regions[index];
  if (!region) return round;
  const regions = round.regions.map((other) => (other === region && box ? { ...other, read: box } : other));
  const found = { region: region.id, text: fault ?? text, probability };
  const order = round.regions.map(({ id }) => id);
  const each = [...round.each, found].sort((a, b) => order.indexOf(a.region) - order.indexOf(b.region));
  return { ...round, regions, each };
}

export function wordsOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
