// Conversations and their pictures, in the browser's own database, so that a reload loses nothing.

import { type Conversation, completed, outdated, type Stored } from './conversation.ts';
import type { Picture } from './picture.ts';

const CONVERSATIONS = 'conversations';
const PICTURES = 'pictures';

export interface Storage {
  /** All conversations, the one changed last first. */
  conversations(): Promise<Conversation[]>;
  conversation(id: string): Promise<Conversation | undefined>;
  picture(id: string): Promise<Picture | undefined>;
  /** Keeps a conversation, and says whether it did: not where another page has kept a revision that is as new. */
  save(conversation: Conversation): Promise<boolean>;
  savePicture(picture: Picture): Promise<void>;
  /** Forgets a conversation, and its picture if no other one is about it. */
  remove(conversation: Conversation): Promise<void>;
}

/**
 * The database, which opens while the page already listens: what is asked of it waits. Where the browser
 * has none for us, as in some private windows, memory has to do.
 */
export function openStorage(): { storage: Storage; lasting: Promise<boolean> } {
  const database = openDatabase().then(inDatabase, () => null);
  const opened = database.then((storage) => storage ?? inMemory());
  const storage: Storage = {
    conversations: async () => (await opened).conversations(),
    conversation: async (id) => (await opened).conversation(id),
    picture: async (id) => (await opened).picture(id),
    save: async (conversation) => (await opened).save(conversation),
    savePicture: async (picture) => (await opened).savePicture(picture),
    remove: async (conversation) => (await opened).remove(conversation),
  };
  return { storage, lasting: database.then((storage) => storage !== null) };
}

async function openDatabase(): Promise<IDBDatabase> {
  const request = indexedDB.open('gpt4roi', 1);
  request.onupgradeneeded = () => {
    request.result.createObjectStore(CONVERSATIONS, { keyPath: 'id' });
    request.result.createObjectStore(PICTURES, { keyPath: 'id' });
  };
  return settle(request);
}

function inDatabase(database: IDBDatabase): Storage {
  const read = <T>(store: string, query: (store: IDBObjectStore) => IDBRequest<T>) =>
    settle(query(database.transaction(store).objectStore(store)));
  const write = (store: string, change: (store: IDBObjectStore) => IDBRequest) =>
    settle(change(database.transaction(store, 'readwrite').objectStore(store))).then(() => undefined);
  const all = async () => (await read<Stored[]>(CONVERSATIONS, (store) => store.getAll())).map(completed);
  return {
    conversations: async () => (await all()).sort((a, b) => b.changed - a.changed),
    async conversation(id) {
      const stored = await read<Stored | undefined>(CONVERSATIONS, (store) => store.get(id));
      return stored && completed(stored);
    },
    picture: (id) => read<Picture | undefined>(PICTURES, (store) => store.get(id)),
    async save(conversation) {
      // One transaction, so that no other page writes between the look and the change.
      const store = database.transaction(CONVERSATIONS, 'readwrite').objectStore(CONVERSATIONS);
      const stored = await settle<Stored | undefined>(store.get(conversation.id));
      if (stored && outdated(conversation, completed(stored))) return false;
      await settle(store.put(conversation));
      return true;
    },
    savePicture: (picture) => write(PICTURES, (store) => store.put(picture)),
    async remove({ id, picture }) {
      await write(CONVERSATIONS, (store) => store.delete(id));
      if ((await all()).every((other) => other.picture !== picture)) {
        await write(PICTURES, (store) => store.delete(picture));
      }
    },
  };
}

function inMemory(): Storage {
  const conversations = new Map<string, Conversation>();
  const pictures = new Map<string, Picture>();
  return {
    conversations: async () => [...conversations.values()].sort((a, b) => b.changed - a.changed),
    conversation: async (id) => conversations.get(id),
    picture: async (id) => pictures.get(id),
    async save(conversation) {
      const stored = conversations.get(conversation.id);
      if (stored && outdated(conversation, stored)) return false;
      conversations.set(conversation.id, conversation);
      return true;
    },
    savePicture: async (picture) => void pictures.set(picture.id, picture),
    remove: async ({ id }) => void conversations.delete(id),
  };
}

function settle<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
