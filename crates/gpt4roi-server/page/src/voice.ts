// Questions by voice, where the browser offers it.

interface Recognition extends EventTarget {
  lang: string;
  interimResults: boolean;
  start(): void;
  stop(): void;
}

interface Heard extends Event {
  readonly results: ArrayLike<ArrayLike<{ readonly transcript: string }>>;
}

type Recognizer = new () => Recognition;

const NUMBERS = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten'];

/** Makes a button listen when it is pressed; it stays hidden where nobody can listen. */
export function listen(button: HTMLElement, hear: (text: string) => void, fail: (words: string) => void): void {
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
    running.addEventListener('result', (event) => hear(withDigits(Array.from((event as Heard).results, (result) => result[0]?.transcript).join(' '))));
    running.addEventListener('error', () => fail('The browser could not listen. Allow it the microphone, or type.'));
    running.addEventListener('end', ended);
    running.start();
    button.setAttribute('aria-pressed', 'true');
  });
}

/** “Region two” is a mention, once its number is a digit. */
export function withDigits(text: string): string {
  return text.replace(/\b(region) (\w+)\b/gi, (all, word: string, number: string) => {
    const digit = NUMBERS.indexOf(number.toLowerCase());
    return digit > 0 ? `${word} ${digit}` : all;
  });
}
