// Questions by voice, where the browser offers it.

interface Recognition extends EventTarget {
  lang: string;
  interimResults: boolean;
  start(): void;
  stop(): void;
}

interface Heard extends Event {
  /** The first of the results that was not there before. */
  readonly resultIndex: number;
  readonly results: ArrayLike<ArrayLike<{ readonly transcript: string }>>;
}

type Recognizer = new () => Recognition;

const NUMBERS = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten'];

/** Makes a button listen when it is pressed, and hands on what is new of what is heard; it stays hidden where nobody can listen. */
export function listen(button: HTMLElement, hear: (words: string) => void, fail: (words: string) => void): void {
  const { SpeechRecognition, webkitSpeechRecognition } = window as unknown as Record<string, Recognizer | undefined>;
  const Recognizer = SpeechRecognition ?? webkitSpeechRecognition;
  if (!Recognizer) return;
  button.hidden = false;
  let running: Recognition | null = null;
  const ended = () => {
    running = null;
    button.setAttribute('aria-pressed', 'false');
  };
  button.addEventListener('click', () => {
    if (running) return running.stop();
    running = new Recognizer();
    running.lang = 'en';
    running.addEventListener('result', (event) => {
      const words = newWords(event as Heard);
      if (words !== '') hear(withDigits(words));
    });
    running.addEventListener('error', () => fail('The browser could not listen. Allow it the microphone, or type.'));
    running.addEventListener('end', ended);
    running.start();
    button.setAttribute('aria-pressed', 'true');
  });
}

function newWords({ results, resultIndex }: Heard): string {
  return Array.from(results, (result) => result[0]?.transcript.trim() ?? '').slice(resultIndex).join(' ');
}

/** “Region two” is a mention, once its number is a digit. */
export function withDigits(text: string): string {
  return text.replace(/\b(region) (\w+)\b/gi, (all, word: string, number: string) => {
    const digit = NUMBERS.indexOf(number.toLowerCase());
    return digit > 0 ? `${word} ${digit}` : all;
  });
}
