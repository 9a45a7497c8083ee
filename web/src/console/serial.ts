// The serial port of a guest: xterm, loaded when a console is first opened.
import { FitAddon } from "@xterm/addon-fit";
import { Terminal } from "@xterm/xterm";
import type { Line, Screen } from "./screen";
import { allowStyles } from "./strict";
import type { Door } from "./ticket";

export function open(target: HTMLElement, { url, protocols }: Door, line: Line): Screen {
  allowStyles();
  const terminal = new Terminal({
    cursorBlink: true,
    fontFamily: "ui-monospace, 'Cascadia Mono', Menlo, 'DejaVu Sans Mono', monospace",
    fontSize: 14,
    scrollback: 5000,
    screenReaderMode: true,
    theme: { background: "#0b0e13", foreground: "#d6dde6" },
  });
  const fit = new FitAddon();
  terminal.loadAddon(fit);
  terminal.open(target);
  fit.fit();

  const socket = new WebSocket(url, protocols);
  socket.binaryType = "arraybuffer";
  const send = (bytes: Uint8Array<ArrayBuffer>) => {
    if (socket.readyState === WebSocket.OPEN) socket.send(bytes);
  };
  const type = (text: string) => send(new TextEncoder().encode(text));
  socket.addEventListener("open", () => line.connected());
  socket.addEventListener("close", () => line.lost());
  socket.addEventListener("message", ({ data }) => {
    if (data instanceof ArrayBuffer) terminal.write(new Uint8Array(data));
  });
  terminal.onData(type);
  terminal.onBinary((text) => send(Uint8Array.from(text, (sign) => sign.charCodeAt(0))));
  const observer = new ResizeObserver(() => fit.fit());
  observer.observe(target);

  return {
    close: () => {
      observer.disconnect();
      socket.close();
      terminal.dispose();
    },
    focus: () => terminal.focus(),
    keys: {
      "Ctrl+C": () => type("\x03"),
      "Ctrl+D": () => type("\x04"),
      "Ctrl+Z": () => type("\x1a"),
      Escape: () => type("\x1b"),
    },
  };
}
