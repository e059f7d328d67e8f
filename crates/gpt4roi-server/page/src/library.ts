// The list of conversations.

import type { Conversation } from './conversation.ts';
import { element, icon } from './element.ts';

export interface LibraryWishes {
  open(conversation: Conversation): void;
  rename(conversation: Conversation, title: string): void;
  remove(conversation: Conversation): void;
}

export function showLibrary(list: HTMLElement, all: readonly Conversation[], current: string | undefined, wishes: LibraryWishes): void {
  const nothing = element('li', { class: 'note' }, 'No conversation yet. Open a picture to begin one.');
  list.replaceChildren(...(all.length > 0 ? all.map((conversation) => row(conversation, conversation.id === current, wishes)) : [nothing]));
}

function row(conversation: Conversation, current: boolean, wishes: LibraryWishes): HTMLElement {
  const { title, changed, rounds } = conversation;
  const when = new Date(changed).toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'short' });
  const size = rounds.length === 1 ? '1 question' : `${rounds.length} questions`;
  const name = element('span', { class: 'name' }, title);
  const open = element(
    'button',
    { type: 'button', class: 'open', 'aria-current': current && 'true', onclick: () => wishes.open(conversation) },
    name,
    element('span', { class: 'note' }, `${size} · ${when}`),
  );
  const item = element('li', { class: 'conversation' }, open);
  const rename = () => item.replaceChild(renaming(conversation, wishes), open);
  item.append(
    button('edit', `Rename “${title}”`, () => rename()),
    button('delete', `Delete “${title}”`, () => wishes.remove(conversation)),
  );
  return item;
}

function renaming(conversation: Conversation, wishes: LibraryWishes): HTMLElement {
  const field = element('input', { class: 'rename', 'aria-label': 'New name', maxlength: 120, value: conversation.title });
  let left = false;
  const leave = (title: string) => {
    if (left) return;
    left = true;
    wishes.rename(conversation, title.trim() || conversation.title);
  };
  field.addEventListener('keydown', (event) => {
    if (event.key === 'Enter') leave(field.value);
    if (event.key === 'Escape') leave(conversation.title);
    if (event.key === 'Enter' || event.key === 'Escape') event.preventDefault();
  });
  field.addEventListener('blur', () => leave(field.value));
  queueMicrotask(() => field.select());
  return field;
}

function button(name: string, label: string, run: () => void): HTMLElement {
  return element('button', { type: 'button', class: 'quiet', title: label, 'aria-label': label, onclick: run }, icon(name));
}
