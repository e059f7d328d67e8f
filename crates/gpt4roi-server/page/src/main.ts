// The page: binds what stands in index.html to the session.

import { connect } from './api.ts';
import { Canvas, type Tool } from './canvas.ts';
import { Composer, listed } from './composer.ts';
import { element, byId } from './element.ts';
import { toCoco, toJson, toPng } from './export.ts';
import { showLibrary } from './library.ts';
import { colourClass } from './palette.ts';
import type { Picture } from './picture.ts';
import { described, type Region } from './regions.ts';
import { Session, type State, wordsOf } from './session.ts';
import { openStorage } from './storage.ts';
import { Talk } from './talk.ts';
import { listen } from './voice.ts';

const EMBEDDED = 'gpt4roi-nano';
const SAMPLE = 'sample.png';
const STAGED = ['picture', 'history', 'selection', 'lit', 'tool'] as const;
const TOOL_KEYS: Readonly<Record<string, Tool>> = { v: 'select', b: 'box', l: 'lasso', p: 'point' };

const { storage, lasting } = openStorage();
const api = connect(askKey);
const session = new Session({ api, storage, announce, notify });
const { store } = session;

const canvas = new Canvas(byId('stage'), sceneOf(store.state), {
  draw: (shape) => session.draw(shape),
  reshape: (id, shape, step) => session.reshape(id, shape, step),
  select: (id, more) => session.select(id, more),
  mention: (id, always) => {
    if (always || !composer.mentioned.includes(id)) composer.insert(id);
  },
  light: (id) => session.light(id),
});

const composer = new Composer(byId('question'), byId('mirror'), byId('offers'), {
  write: (draft) => session.draft(draft),
  ask: (text) => void ask(text),
  light: (id) => session.light(id),
  leaveEditing: () => session.leaveEditing(),
});

const talk = new Talk(byId('rounds'), {
  retry: () => void session.retry(),
  edit: (index) => {
    session.edit(index);
    composer.focus();
  },
  select: (id) => session.select(id, false),
});

// What is shown. The stage follows at once, so that no key or movement meets an old one; everything
// else follows with the next frame, however many words have arrived by then.

let drawn: State | null = null;
let due = 0;

function follow(state: State): void {
  if (!drawn || STAGED.some((part) => drawn?.[part] !== state[part])) canvas.render(sceneOf(state));
  drawn = state;
  due ||= requestAnimationFrame(() => {
    due = 0;
    render(store.state);
  });
}

function render(state: State): void {
  const { conversation, picture, history, selection, editing } = state;
  const regions = history.present;
  // First of all, since what is hidden has no height, and the question's field takes that of its words.
  byId('welcome').hidden = picture !== null;
  byId('talk').hidden = byId('tools').hidden = picture === null;
  talk.render(conversation, regions);
  composer.render(conversation?.draft ?? '', regions);
  renderTools(state);
  renderRegions(regions, selection);
  renderQuick(regions);
  byId('closer').setAttribute('aria-pressed', String(conversation?.closer ?? false));
  byId('title').textContent = conversation?.title ?? '';
  byId('stage').classList.toggle('empty', picture === null);
  byId('hint').textContent = hintFor(state);
  byId('editing').hidden = editing === null;
  byId('send').hidden = session.asking;
  byId('stop').hidden = !session.asking;
  for (const button of [byId<HTMLButtonElement>('open-files'), byId<HTMLButtonElement>('again')]) button.disabled = picture === null;
  for (const chip of document.querySelectorAll<HTMLElement>('[data-chip]')) {
    chip.classList.toggle('lit', chip.dataset.chip === String(state.lit));
  }
}

function sceneOf({ picture, history, selection, lit, tool }: State) {
  return { picture, regions: history.present, selection, lit, tool };
}

function hintFor({ conversation, history }: State): string {
  if (!conversation || conversation.rounds.length > 0) return '';
  if (history.present.length === 0) return 'Draw a box around something, then ask about it. Or ask about the whole picture.';
  return 'Click a region’s number, or type @, to mention it in the question. Draw as many as you like.';
}

function renderTools({ tool, history, selection }: State): void {
  for (const button of document.querySelectorAll<HTMLElement>('button[data-tool]')) {
    button.setAttribute('aria-pressed', String(button.dataset.tool === tool));
  }
  byId<HTMLButtonElement>('undo').disabled = history.past.length === 0;
  byId<HTMLButtonElement>('redo').disabled = history.future.length === 0;
  byId<HTMLButtonElement>('delete').disabled = selection.length === 0;
}

let chipsShown: readonly unknown[] = [];

function renderRegions(regions: readonly Region[], selection: readonly number[]): void {
  if (chipsShown[0] === regions && chipsShown[1] === selection) return;
  chipsShown = [regions, selection];
  const chip = (region: Region) => {
    const label = `Mention ${described(region)}`;
    const mentions = () => {
      session.select(region.id, false);
      composer.insert(region.id);
      composer.focus();
    };
    return element('li', {}, element(
      'button',
      {
        type: 'button',
        class: `chip ${colourClass(region.id)}${selection.includes(region.id) ? ' selected' : ''}`,
        'data-chip': region.id,
        'aria-label': label,
        title: label,
        onclick: mentions,
      },
      `region ${region.id}`,
    ));
  };
  byId('regions').replaceChildren(...regions.map(chip));
}

/** The regions that a quick question is about: those in the draft, else those selected, else all. */
function subjects(regions: readonly Region[]): number[] {
  const present = (ids: readonly number[]) => ids.filter((id) => regions.some((region) => region.id === id));
  const [drafted, selected] = [present(composer.mentioned), present(store.state.selection)];
  return [...new Set(drafted.length > 0 ? drafted : selected.length > 0 ? selected : regions.map(({ id }) => id))];
}

/** The regions to compare: at least two, those in question first. */
function compared(regions: readonly Region[]): number[] {
  const chosen = subjects(regions);
  const others = regions.map(({ id }) => id).filter((id) => !chosen.includes(id));
  return chosen.length > 1 ? chosen : [...others.slice(-1), ...chosen];
}

function renderQuick(regions: readonly Region[]): void {
  const ids = subjects(regions);
  byId('quick-name').textContent = ids.length > 1 ? 'What are they?' : 'What is it?';
  byId('quick-describe').textContent = ids.length === 0 ? 'Describe the picture' : 'Describe';
  byId('quick-name').hidden = regions.length === 0;
  byId('quick-compare').hidden = byId('quick-all').hidden = regions.length < 2;
  for (const button of document.querySelectorAll<HTMLButtonElement>('#quick button')) button.disabled = session.asking;
}

function nameQuestion(ids: readonly number[]): string {
  return `What ${ids.length > 1 ? 'are' : 'is'} ${listed(ids)}?`;
}

function describeQuestion(ids: readonly number[]): string {
  return ids.length === 0 ? 'Describe the picture.' : `Describe ${listed(ids)} in detail.`;
}

function compareQuestion(ids: readonly number[]): string {
  return ids.length === 2 ? `How do ${listed(ids)} relate?` : `Compare ${listed(ids)}.`;
}

// What is done.

async function ask(text: string): Promise<void> {
  if (text.trim() === '' || session.asking) return;
  await attempt(() => session.ask(text.trim()));
}

/** Does something that may fail, and says so if it does. What was said before has been read. */
async function attempt(action: () => unknown): Promise<void> {
  byId('notice').hidden = true;
  try {
    await action();
  } catch (error) {
    notify(wordsOf(error));
  }
}

const openFile = (file: File) => attempt(async () => {
  if (/json$/i.test(file.type) || /\.json$/i.test(file.name)) session.import(await file.text());
  else await session.open(file, file.name || 'pasted picture');
});

const openSample = () => attempt(async () => session.open(await (await fetch(SAMPLE)).blob(), 'sample.png'));

function press(id: string, action: () => unknown): void {
  byId(id).addEventListener('click', () => void attempt(action));
}

press('choose', () => byId('file').click());
press('new-picture', () => (session.asking ? notify('Wait for the answer, or stop it first.') : byId('file').click()));
press('another', () => byId('file').click());
press('photograph', () => byId('camera').click());
press('sample', openSample);
press('again', async () => {
  await session.again();
  byId<HTMLDialogElement>('library').close();
});
for (const id of ['file', 'camera', 'regions-file']) {
  const input = byId<HTMLInputElement>(id);
  input.addEventListener('change', () => {
    const [file] = input.files ?? [];
    input.value = '';
    byId<HTMLDialogElement>('library').close();
    if (file) void openFile(file);
  });
}
byId('photograph').hidden = !matchMedia('(pointer: coarse)').matches;

press('undo', () => session.undo());
press('redo', () => session.redo());
press('delete', () => session.removeSelected());
press('zoom-in', () => canvas.zoom(1.5));
press('zoom-out', () => canvas.zoom(1 / 1.5));
press('fit', () => canvas.fit());
for (const button of document.querySelectorAll<HTMLElement>('button[data-tool]')) {
  button.addEventListener('click', () => session.choose(button.dataset.tool as Tool));
}

press('quick-name', () => ask(nameQuestion(subjects(session.regions))));
press('quick-describe', () => ask(describeQuestion(subjects(session.regions))));
press('quick-compare', () => ask(compareQuestion(compared(session.regions))));
press('quick-all', () => session.describeAll());
press('closer', () => session.lookCloser(!store.state.conversation?.closer));
press('stop', () => session.stop());
press('leave-editing', () => session.leaveEditing());
byId('ask').addEventListener('submit', (event) => {
  event.preventDefault();
  void ask(composer.text);
});
listen(byId('voice'), (words) => composer.hear(words), notify);

// Files out and in.

function save(blob: Blob, extension: string): void {
  const url = URL.createObjectURL(blob);
  const name = (store.state.picture?.name ?? 'picture').replace(/\.[^.]*$/, '');
  element('a', { href: url, download: `${name}${extension}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
  byId('files').hidePopover();
}

function saveJson(make: typeof toJson, extension: string): void {
  const { picture, conversation } = store.state;
  if (!picture || !conversation) return;
  const content = make(picture, { ...conversation, regions: session.regions });
  save(new Blob([`${JSON.stringify(content, null, 2)}\n`], { type: 'application/json' }), extension);
}

press('export-png', async () => save(await toPng(store.state.picture as Picture, session.regions), '-annotated.png'));
press('export-json', () => saveJson(toJson, '-regions.json'));
press('export-coco', () => saveJson(toCoco, '-coco.json'));
press('import', () => {
  byId('files').hidePopover();
  byId('regions-file').click();
});

document.addEventListener('paste', (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith('image/'));
  if (!file) return;
  event.preventDefault();
  void openFile(file);
});
document.addEventListener('dragover', (event) => {
  if (!event.dataTransfer?.types.includes('Files')) return;
  event.preventDefault();
  byId('drop').hidden = false;
});
document.addEventListener('dragleave', (event) => {
  if (event.relatedTarget === null) byId('drop').hidden = true;
});
document.addEventListener('drop', (event) => {
  byId('drop').hidden = true;
  const [file] = event.dataTransfer?.files ?? [];
  if (!file) return;
  event.preventDefault();
  void openFile(file);
});

// Keys that work wherever nothing is being written.

document.addEventListener('keydown', (event) => {
  const target = event.target as Element;
  if (target.matches('input, textarea') || document.querySelector('dialog[open]')) return;
  if (keyed(event)) event.preventDefault();
});

function keyed(event: KeyboardEvent): boolean {
  const key = event.key.toLowerCase();
  if (event.altKey) return false;
  if (event.ctrlKey || event.metaKey) return keyedWithControl(key, event.shiftKey);
  const tool = TOOL_KEYS[key];
  const region = session.regions.find(({ id }) => String(id) === key);
  if (tool) chooseByKey(tool);
  else if (region) composer.insert(region.id);
  else if (key === 'delete' || key === 'backspace') session.removeSelected();
  else if (key === 'escape') canvas.cancel() || session.select(null, false);
  else if (key === '0') canvas.fit();
  else if (key === '+' || key === '=') canvas.zoom(1.25);
  else if (key === '-') canvas.zoom(0.8);
  else if (key === 'q') composer.focus();
  else if (key === '?') byId<HTMLDialogElement>('help').showModal();
  else return false;
  return true;
}

/** A drawing tool chosen by its key is at once under the arrow keys. */
function chooseByKey(tool: Tool): void {
  session.choose(tool);
  if (tool !== 'select') canvas.focusStage();
  announce(`Tool: ${tool}`);
}

function keyedWithControl(key: string, shift: boolean): boolean {
  if (key === 'z' && !shift) session.undo();
  else if (key === 'y' || key === 'z') session.redo();
  else return false;
  return true;
}

// Pointing at a mention lights its region.

for (const [kind, lights] of [['pointerover', true], ['pointerout', false], ['focusin', true], ['focusout', false]] as const) {
  document.addEventListener(kind, (event) => {
    const chip = (event.target as Element).closest?.<HTMLElement>('button[data-chip]');
    if (chip) session.light(lights ? Number(chip.dataset.chip) : null);
  });
}

// Dialogs.

for (const dialog of document.querySelectorAll('dialog')) {
  const close = () => dialog.close();
  dialog.querySelector('[data-close]')?.addEventListener('click', close);
  if (dialog.id !== 'key') dialog.addEventListener('click', (event) => event.target === dialog && close());
}

async function showConversations(): Promise<void> {
  await session.save();
  const dialog = byId<HTMLDialogElement>('library');
  showLibrary(byId('conversations'), await storage.conversations(), store.state.conversation?.id, {
    open: (conversation) => void attempt(() => session.switchTo(conversation)).then(() => dialog.close()),
    rename: (conversation, title) => void session.rename(conversation, title).then(showConversations),
    remove: (conversation) => void session.remove(conversation).then(showConversations),
  });
  if (!dialog.open) dialog.showModal();
}

press('open-library', showConversations);
press('open-help', () => byId<HTMLDialogElement>('help').showModal());
for (const id of ['model', 'open-about']) press(id, () => byId<HTMLDialogElement>('about').showModal());

/** Asks for an API key and says why; `null` if there is none to give. */
function askKey(why: string): Promise<string | null> {
  const dialog = byId<HTMLDialogElement>('key');
  const field = byId<HTMLInputElement>('key-field');
  byId('key-why').textContent = why;
  field.value = '';
  dialog.returnValue = '';
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    const closed = () => resolve((dialog.returnValue === 'use' && field.value.trim()) || null);
    dialog.addEventListener('close', closed, { once: true });
  });
}

// Words to the reader.

function announce(text: string): void {
  byId('live').textContent = text;
}

function notify(text: string, action?: { readonly label: string; run(): void }): void {
  const button = byId<HTMLButtonElement>('notice-action');
  byId('notice-text').textContent = text;
  button.hidden = action === undefined;
  button.textContent = action?.label ?? '';
  button.onclick = () => {
    byId('notice').hidden = true;
    action?.run();
  };
  byId('notice').hidden = false;
}

press('notice-close', () => undefined);

async function greet(): Promise<void> {
  const [model] = await api.models();
  if (model === undefined) return;
  const embedded = model === EMBEDDED;
  byId('model').textContent = embedded ? 'built-in model' : model;
  byId('about-model').textContent = `This server answers with ${model}.`;
  byId('model').hidden = false;
  byId('honest').hidden = byId('about-nano').hidden = !embedded;
}

document.addEventListener('visibilitychange', () => void session.save());
await attempt(() => session.resume());
store.subscribe(follow);
await attempt(greet);
if (!(await lasting)) notify('This browser keeps no data for this page: conversations are gone after a reload. Export what you need.');
