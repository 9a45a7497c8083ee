// Server-sent events from a stream of text. The browser's own EventSource cannot send the header with the token.

export interface ServerEvent {
  id: string | null;
  event: string;
  data: string;
}

/** Takes the pieces as they arrive, however they are cut, and hands over whole events. */
export class EventReader {
  private rest = "";
  private id: string | null = null;
  private event = "";
  private data: string[] = [];

  constructor(private readonly deliver: (event: ServerEvent) => void) {}

  feed(piece: string): void {
    // A "\r" at the end may be the first half of "\r\n".
    const held = (this.rest + piece).endsWith("\r");
    const all = held ? (this.rest + piece).slice(0, -1) : this.rest + piece;
    const lines = all.split(/\r\n|\n|\r/);
    this.rest = (lines.pop() ?? "") + (held ? "\r" : "");
    for (const line of lines) this.line(line);
  }

  private line(line: string): void {
    if (line === "") {
      if (this.data.length > 0) {
        this.deliver({ id: this.id, event: this.event || "message", data: this.data.join("\n") });
      }
      this.event = "";
      this.data = [];
      return;
    }
    if (line.startsWith(":")) return;
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") this.data.push(value);
    else if (field === "event") this.event = value;
    else if (field === "id") this.id = value;
  }
}
