// The stage: the picture, its regions as SVG elements over it, and what hands do there.

import { assign, element, svg } from './element.ts';
import type { Picture } from './picture.ts';
import { handleNode, handlePlace, linePath, markPath, onScreen, RegionNode, shapePath } from './region_node.ts';
import {
  bounds, boxBetween, clamp, type Handle, HANDLES, lasso, moved, type Point, pointAt, type Region, resized, type Shape,
  type Size,
} from './regions.ts';
import { fit, panned, toPicture, toScreen, type View, zoomed } from './view.ts';

export type Tool = 'select' | 'box' | 'lasso' | 'point';

export interface Scene {
  readonly picture: Picture | null;
  readonly regions: readonly Region[];
  readonly selection: readonly number[];
  readonly lit: number | null;
  readonly tool: Tool;
}

/** What the stage asks for; it changes nothing by itself but the view. */
export interface Wishes {
  draw(shape: Shape): void;
  /** `step` joins changes that are undone together. */
  reshape(id: number, shape: Shape, step: string): void;
  select(id: number | null, more: boolean): void;
  mention(id: number, always: boolean): void;
  light(id: number | null): void;
}

/** Fingers and pointers that travel less than this far, in pixels of the screen, have clicked. */
const CLICK = 4;
const FINE_REACH = 9;
const TOUCH_REACH = 22;

/** What a pointer that is down is doing. */
type Gesture =
  | { readonly kind: 'draw'; readonly from: Point; readonly trail: Point[]; readonly over: Element }
  | { readonly kind: 'move'; readonly id: number; readonly from: Point; readonly shape: Shape; readonly step: string }
  | { readonly kind: 'resize'; readonly id: number; readonly handle: Handle; readonly step: string }
  | { readonly kind: 'pan'; readonly clicks: boolean }
  | { readonly kind: 'pinch'; readonly span: number };

export class Canvas {
  #view: View = { scale: 1, x: 0, y: 0 };
  /** Whether the picture is to stay fitted when the stage changes its size. */
  #fitted = true;
  #scene: Scene;
  #gesture: Gesture | null = null;
  #pointers = new Map<number, Point>();
  #travelled = 0;
  /** Corners of a shape that is drawn by single clicks. */
  #corners: Point[] = [];
  /** Where the pointer or the keyboard's cross is, in pixels of the picture. */
  #cursor: Point | null = null;
  #byKeyboard = false;
  #space = false;
  #alt = false;
  #steps = 0;
  #nodes = new Map<number, RegionNode>();
  #shown: string | null = null;

  readonly #image = element('img', { class: 'picture', alt: '', draggable: 'false' });
  readonly #layer = svg('svg', { class: 'layer', role: 'group', 'aria-label': 'Regions' });
  readonly #regions = svg('g');
  readonly #preview = svg('path', { class: 'preview' });
  readonly #cross = svg('path', { class: 'cross' });
  readonly #handles = svg('g', { class: 'handles' });

  constructor(
    private readonly stage: HTMLElement,
    scene: Scene,
    private readonly wishes: Wishes,
  ) {
    this.#scene = scene;
    this.#layer.append(this.#regions, this.#preview, this.#handles, this.#cross);
    stage.append(this.#image, this.#layer);
    new ResizeObserver(() => this.#resized()).observe(stage);
    stage.addEventListener('pointerdown', (event) => this.#down(event));
    stage.addEventListener('pointermove', (event) => this.#move(event));
    stage.addEventListener('pointerup', (event) => this.#up(event));
    stage.addEventListener('pointercancel', (event) => this.#cancelled(event));
    stage.addEventListener('pointerleave', () => this.#left());
    stage.addEventListener('wheel', (event) => this.#wheel(event), { passive: false });
    stage.addEventListener('keydown', (event) => this.#key(event));
    stage.addEventListener('focusout', () => this.#lostFocus());
    window.addEventListener('keydown', (event) => this.#held(event));
    window.addEventListener('keyup', (event) => this.#held(event));
    window.addEventListener('blur', () => this.#released());
  }

  render(scene: Scene): void {
    const other = scene.picture?.id !== this.#scene.picture?.id || this.#shown === null;
    if (scene.tool !== this.#scene.tool) this.cancel();
    this.#scene = scene;
    if (other) this.#show(scene.picture);
    this.#draw();
  }

  fit(): void {
    const { picture } = this.#scene;
    if (!picture) return;
    this.#fitted = true;
    this.#view = fit(picture, this.#size());
    this.#draw();
  }

  zoom(factor: number): void {
    const { width, height } = this.#size();
    this.#zoomAt(factor, [width / 2, height / 2]);
  }

  /** Gives up what is being drawn. */
  cancel(): boolean {
    const busy = this.#corners.length > 0 || this.#gesture?.kind === 'draw';
    this.#corners = [];
    if (this.#gesture?.kind === 'draw') this.#gesture = null;
    this.#draw();
    return busy;
  }

  focus(id: number): void {
    this.#nodes.get(id)?.group.focus();
  }

  focusStage(): void {
    this.stage.focus();
  }

  // The picture and the view.

  #show(picture: Picture | null): void {
    if (this.#shown) URL.revokeObjectURL(this.#shown);
    this.#shown = picture ? URL.createObjectURL(picture.file) : null;
    this.#image.hidden = !picture;
    this.#cursor = null;
    this.cancel();
    if (!picture || !this.#shown) return;
    assign(this.#image, { src: this.#shown, alt: picture.name });
    this.fit();
  }

  #size(): Size {
    return { width: this.stage.clientWidth, height: this.stage.clientHeight };
  }

  #resized(): void {
    if (this.#fitted) this.fit();
    else this.#draw();
  }

  #zoomAt(factor: number, at: Point): void {
    const { picture } = this.#scene;
    if (!picture) return;
    this.#fitted = false;
    this.#view = zoomed(this.#view, factor, at, fit(picture, this.#size()).scale / 4);
    this.#panBy([0, 0]);
  }

  #panBy(by: Point): void {
    const { picture } = this.#scene;
    if (!picture) return;
    this.#fitted = false;
    this.#view = panned(this.#view, by, picture, this.#size());
    this.#draw();
  }

  #wheel(event: WheelEvent): void {
    if (!this.#scene.picture) return;
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    this.#zoomAt(Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.002)), this.#at(event));
  }

  /** Where an event is on the stage. */
  #at(event: MouseEvent): Point {
    const { left, top } = this.stage.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  }

  // Pointers.

  /** With Alt held, every tool selects and moves. */
  #tool(): Tool {
    return this.#alt ? 'select' : this.#scene.tool;
  }

  #down(event: PointerEvent): void {
    const { picture } = this.#scene;
    if (!picture || event.button > 1) return;
    this.stage.setPointerCapture(event.pointerId);
    this.#byKeyboard = false;
    this.#pointers.set(event.pointerId, this.#at(event));
    this.#travelled = 0;
    if (this.#pointers.size === 2) {
      this.#gesture = { kind: 'pinch', span: this.#span() };
      this.#corners = [];
    } else if (this.#pointers.size === 1) {
      this.#gesture = this.#begin(event);
    }
    this.#draw();
  }

  #begin(event: PointerEvent): Gesture {
    const at = this.#at(event);
    const over = event.target as Element;
    if (event.button === 1 || this.#space) return { kind: 'pan', clicks: false };
    if (this.#tool() !== 'select') return { kind: 'draw', from: at, trail: [at], over };
    const step = `drag ${++this.#steps}`;
    const grip = over.closest<SVGElement>('[data-handle]');
    const selected = this.#selected();
    if (grip && selected) {
      return { kind: 'resize', id: selected.id, handle: HANDLES[Number(grip.dataset.handle)] as Handle, step };
    }
    const region = this.#regionOf(over);
    return region ? { kind: 'move', id: region.id, from: at, shape: region.shape, step } : { kind: 'pan', clicks: true };
  }

  #move(event: PointerEvent): void {
    const { picture } = this.#scene;
    if (!picture) return;
    const at = this.#at(event);
    const before = this.#pointers.get(event.pointerId);
    if (!this.#byKeyboard || before) this.#cursor = toPicture(this.#view, at);
    if (!before) return this.#hover(event);
    this.#pointers.set(event.pointerId, at);
    const by: Point = [at[0] - before[0], at[1] - before[1]];
    this.#travelled += Math.hypot(...by);
    this.#continue(this.#gesture, at, by, picture);
    this.#draw();
  }

  #continue(gesture: Gesture | null, at: Point, by: Point, picture: Size): void {
    switch (gesture?.kind) {
      case 'draw':
        gesture.trail.push(at);
        break;
      case 'move':
        if (this.#travelled >= CLICK) this.wishes.reshape(gesture.id, this.#movedTo(gesture, at, picture), gesture.step);
        break;
      case 'resize': {
        const region = this.#scene.regions.find(({ id }) => id === gesture.id);
        if (region) this.wishes.reshape(region.id, resized(region.shape, gesture.handle, toPicture(this.#view, at), picture), gesture.step);
        break;
      }
      case 'pan':
        this.#panBy(by);
        break;
      case 'pinch':
        this.#pinched(gesture, by);
        break;
    }
  }

  #movedTo(gesture: { from: Point; shape: Shape }, at: Point, picture: Size): Shape {
    const { scale } = this.#view;
    return moved(gesture.shape, [(at[0] - gesture.from[0]) / scale, (at[1] - gesture.from[1]) / scale], picture);
  }

  #pinched(gesture: { readonly span: number }, by: Point): void {
    const span = this.#span();
    const [[ax, ay], [bx, by_]] = [...this.#pointers.values()] as [Point, Point];
    this.#panBy([by[0] / 2, by[1] / 2]);
    this.#zoomAt(span / gesture.span, [(ax + bx) / 2, (ay + by_) / 2]);
    this.#gesture = { kind: 'pinch', span };
  }

  #span(): number {
    const [[ax, ay], [bx, by]] = [...this.#pointers.values()] as [Point, Point];
    return Math.max(1, Math.hypot(ax - bx, ay - by));
  }

  #up(event: PointerEvent): void {
    const gesture = this.#gesture;
    const known = this.#pointers.delete(event.pointerId);
    this.#gesture = null;
    if (!known || !this.#scene.picture || !gesture) return;
    const reach = event.pointerType === 'touch' ? TOUCH_REACH : FINE_REACH;
    if (this.#travelled < CLICK) this.#clicked(gesture, event, reach);
    else if (gesture.kind === 'draw') this.#drawn(gesture.trail);
    this.#draw();
  }

  #cancelled(event: PointerEvent): void {
    this.#pointers.delete(event.pointerId);
    this.#gesture = null;
    this.#draw();
  }

  #left(): void {
    if (this.#pointers.size > 0) return;
    this.wishes.light(null);
    if (!this.#byKeyboard) this.#cursor = null;
    this.#draw();
  }

  #hover(event: PointerEvent): void {
    this.wishes.light(this.#regionOf(event.target as Element)?.id ?? null);
    this.#draw();
  }

  /** A press that went nowhere. */
  #clicked(gesture: Gesture, event: PointerEvent, reach: number): void {
    if (gesture.kind === 'move') {
      this.wishes.select(gesture.id, event.shiftKey);
      this.wishes.mention(gesture.id, false);
    } else if (gesture.kind === 'pan' && gesture.clicks) {
      this.wishes.select(null, false);
    } else if (gesture.kind === 'draw') {
      const tag = this.#corners.length === 0 && gesture.over.closest('.tag');
      const region = tag && this.#regionOf(gesture.over);
      if (region) this.wishes.mention(region.id, true);
      else this.#place(toPicture(this.#view, this.#at(event)), reach);
    }
  }

  /** A drag, from its beginning to its end. */
  #drawn(trail: readonly Point[]): void {
    const picture = this.#scene.picture as Picture;
    const points = trail.map((point) => toPicture(this.#view, point));
    const [first, last] = [points[0] as Point, points[points.length - 1] as Point];
    this.#corners = [];
    switch (this.#scene.tool) {
      case 'box':
        return this.#finish(boxBetween(first, last, picture));
      case 'lasso':
        return this.#finish(lasso(points, picture, 1.5 / this.#view.scale));
      case 'point':
        return this.#finish(pointAt(last, picture));
    }
  }

  /** A corner set by a click or by Enter. */
  #place(at: Point, reach: number): void {
    const picture = this.#scene.picture as Picture;
    const [first] = this.#corners;
    switch (this.#scene.tool) {
      case 'point':
        return this.#finish(pointAt(at, picture));
      case 'box':
        if (first) return this.#finish(boxBetween(first, at, picture));
        break;
      case 'lasso':
        if (this.#closes(at, reach)) return this.#finish(lasso(this.#corners, picture, 0));
    }
    this.#corners = [...this.#corners, clamp(at, picture)];
  }

  /** Whether a corner closes an outline: back at its beginning, or set twice. */
  #closes(at: Point, reach: number): boolean {
    const near = (corner: Point | undefined) =>
      corner !== undefined && Math.hypot(corner[0] - at[0], corner[1] - at[1]) * this.#view.scale <= reach;
    return this.#corners.length >= 3 && (near(this.#corners[0]) || near(this.#corners.at(-1)));
  }

  #finish(shape: Shape | null): void {
    this.#corners = [];
    if (shape) this.wishes.draw(shape);
  }

  // Keys.

  #held(event: KeyboardEvent): void {
    const down = event.type === 'keydown';
    const typing = (event.target as Element).matches('input, textarea');
    if (event.key === 'Alt') this.#alt = down && !typing;
    else if (event.key === ' ') this.#space = down && !typing;
    else return;
    this.#draw();
  }

  #released(): void {
    this.#alt = this.#space = false;
    this.#draw();
  }

  #lostFocus(): void {
    if (!this.#byKeyboard) return;
    this.#byKeyboard = false;
    this.#cursor = null;
    this.#draw();
  }

  #key(event: KeyboardEvent): void {
    const { picture } = this.#scene;
    const region = this.#regionOf(event.target as Element);
    const arrow = arrowOf(event);
    if (!picture || event.ctrlKey || event.metaKey) return;
    if (region && arrow) this.#nudge(region, arrow, event.altKey, picture);
    else if (region && event.key === 'Enter') this.wishes.mention(region.id, true);
    else if (region && event.key === ' ') this.wishes.select(region.id, event.shiftKey);
    else if (!region && arrow && this.#scene.tool === 'select') this.#panBy([-10 * arrow[0], -10 * arrow[1]]);
    else if (!region && arrow) this.#moveCross(arrow, picture);
    else if (!region && event.key === 'Enter' && this.#scene.tool !== 'select') this.#enter(picture);
    else return;
    event.preventDefault();
  }

  #nudge(region: Region, by: Point, resizes: boolean, picture: Size): void {
    const [, , x2, y2] = bounds(region.shape);
    const shape = resizes
      ? resized(region.shape, { x: by[0] ? 1 : 0, y: by[1] ? 1 : 0 }, [x2 + by[0], y2 + by[1]], picture)
      : moved(region.shape, by, picture);
    this.wishes.select(region.id, false);
    this.wishes.reshape(region.id, shape, `nudge ${region.id}`);
  }

  #moveCross([dx, dy]: Point, picture: Size): void {
    const [x, y] = this.#crossPlace(picture);
    this.#byKeyboard = true;
    this.#cursor = clamp([x + dx, y + dy], picture);
    this.#draw();
  }

  #enter(picture: Size): void {
    this.#byKeyboard = true;
    this.#cursor = this.#crossPlace(picture);
    this.#place(this.#cursor, 0);
    this.#draw();
  }

  /** The keyboard's cross; it begins in the middle. */
  #crossPlace(picture: Size): Point {
    return clamp(this.#cursor ?? [picture.width / 2, picture.height / 2], picture);
  }

  // Drawing.

  #selected(): Region | null {
    const { regions, selection } = this.#scene;
    return (selection.length === 1 && regions.find(({ id }) => id === selection[0])) || null;
  }

  #regionOf(node: Element): Region | null {
    const id = Number(node.closest<SVGElement>('[data-region]')?.dataset.region);
    return this.#scene.regions.find((region) => region.id === id) ?? null;
  }

  #draw(): void {
    const { picture, tool } = this.#scene;
    const { scale, x, y } = this.#view;
    const { dataset } = this.stage;
    dataset.tool = this.#gesture?.kind === 'pan' || this.#space ? 'pan' : this.#tool();
    this.#image.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
    this.#image.classList.toggle('pixels', scale >= 8);
    if (!picture) return;
    this.#drawRegions();
    this.#drawPreview(tool, picture);
    this.#drawHandles();
    const cross = this.#byKeyboard && this.#cursor ? toScreen(this.#view, this.#cursor) : null;
    assign(this.#cross, { d: cross ? `M${cross[0] - 12} ${cross[1]}h24M${cross[0]} ${cross[1] - 12}v24` : '' });
  }

  #drawRegions(): void {
    const { regions, selection, lit } = this.#scene;
    for (const [id, node] of this.#nodes) {
      if (regions.every((region) => region.id !== id)) {
        node.group.remove();
        this.#nodes.delete(id);
      }
    }
    for (const region of regions) {
      const node = this.#nodes.get(region.id) ?? this.#added(region.id);
      node.draw(region, this.#view, { selected: selection.includes(region.id), lit: lit === region.id });
    }
  }

  #added(id: number): RegionNode {
    const node = new RegionNode(id);
    const later = [...this.#nodes.values()].find((other) => other.id > id);
    this.#regions.insertBefore(node.group, later?.group ?? null);
    node.group.addEventListener('focus', () => this.wishes.light(id));
    node.group.addEventListener('blur', () => this.wishes.light(null));
    this.#nodes.set(id, node);
    return node;
  }

  #drawPreview(tool: Tool, picture: Size): void {
    const path = this.#gesture?.kind === 'draw' ? this.#trailPath(this.#gesture.trail, tool, picture) : this.#cornerPath(tool, picture);
    assign(this.#preview, { d: path ?? '' });
  }

  #trailPath(trail: readonly Point[], tool: Tool, picture: Size): string | null {
    if (tool === 'lasso') return linePath(trail);
    const [first, last] = [trail[0] as Point, trail[trail.length - 1] as Point];
    if (tool !== 'box' || this.#travelled < CLICK) return null;
    return this.#boxPreview(toPicture(this.#view, first), toPicture(this.#view, last), picture);
  }

  #cornerPath(tool: Tool, picture: Size): string | null {
    const [first] = this.#corners;
    if (!first) return null;
    const end = this.#cursor ?? first;
    const started = linePath([...this.#corners, end].map((corner) => toScreen(this.#view, corner)));
    return (tool === 'box' && this.#boxPreview(first, end, picture)) || started + markPath(toScreen(this.#view, first));
  }

  #boxPreview(a: Point, b: Point, picture: Size): string | null {
    const shape = boxBetween(a, b, picture);
    return shape && shapePath(shape, this.#view);
  }

  #drawHandles(): void {
    const region = this.#tool() === 'select' ? this.#selected() : null;
    if (!region || region.shape.kind === 'point') return this.#handles.replaceChildren();
    if (this.#handles.childElementCount === 0) this.#handles.append(...HANDLES.map(handleNode));
    const box = onScreen(bounds(region.shape), this.#view);
    const small = Math.min(box[2] - box[0], box[3] - box[1]) < 64;
    HANDLES.forEach((handle, index) => {
      const node = this.#handles.children[index] as SVGGElement;
      const [x, y] = handlePlace(handle, box);
      assign(node, { transform: `translate(${x} ${y})`, class: small && !(handle.x && handle.y) ? 'handle hidden' : 'handle' });
    });
  }
}

/** Which way an arrow key points, ten times as far with Shift. */
function arrowOf({ key, shiftKey }: KeyboardEvent): Point | null {
  const far = shiftKey ? 10 : 1;
  switch (key) {
    case 'ArrowLeft':
      return [-far, 0];
    case 'ArrowRight':
      return [far, 0];
    case 'ArrowUp':
      return [0, -far];
    case 'ArrowDown':
      return [0, far];
    default:
      return null;
  }
}
