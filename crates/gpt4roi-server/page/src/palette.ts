// Colours of regions: those of Okabe and Ito that stay apart for colour-blind eyes, in the order in
// which `gpt4roi ask --annotate` gives them. The number is always beside the colour.

export interface Colour {
  readonly fill: string;
  /** What is legible on it. */
  readonly ink: string;
}

const COLOURS: readonly Colour[] = [
  { fill: '#e69f00', ink: '#000000' },
  { fill: '#56b4e9', ink: '#000000' },
  { fill: '#009e73', ink: '#000000' },
  { fill: '#cc79a7', ink: '#000000' },
  { fill: '#d55e00', ink: '#000000' },
  { fill: '#0072b2', ink: '#ffffff' },
];

export function colour(id: number): Colour {
  return COLOURS[slot(id)] as Colour;
}

/** The class that carries the colour in the style sheet. */
export function colourClass(id: number): string {
  return `c${slot(id)}`;
}

function slot(id: number): number {
  return (Math.max(1, id) - 1) % COLOURS.length;
}
