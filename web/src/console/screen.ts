// What both kinds of console have in common.

export interface Line {
  connected: () => void;
  lost: () => void;
}

export interface Screen {
  close: () => void;
  focus: () => void;
  /** Keys that the browser keeps for itself, by their name. */
  keys: Record<string, () => void>;
}
