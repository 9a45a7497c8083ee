// The screen of a guest: noVNC, loaded when a console is first opened.
import RFB from "@novnc/novnc";
import type { Door } from "./ticket";
import type { Line, Screen } from "./screen";

export function open(target: HTMLElement, { url, protocols }: Door, line: Line): Screen {
  const rfb = new RFB(target, url, { shared: true, wsProtocols: protocols });
  rfb.scaleViewport = true;
  rfb.focusOnClick = true;
  rfb.background = "transparent";
  rfb.addEventListener("connect", () => line.connected());
  rfb.addEventListener("disconnect", () => line.lost());
  return {
    close: () => rfb.disconnect(),
    focus: () => rfb.focus(),
    keys: {
      "Ctrl+Alt+Del": () => rfb.sendCtrlAltDel(),
      "Ctrl+Alt+F1": () => chord(rfb, [CONTROL, ALT, [0xffbe, "F1"]]),
      "Ctrl+Alt+F2": () => chord(rfb, [CONTROL, ALT, [0xffbf, "F2"]]),
      "Ctrl+C": () => chord(rfb, [CONTROL, [0x63, "KeyC"]]),
      Escape: () => chord(rfb, [[0xff1b, "Escape"]]),
      Tab: () => chord(rfb, [[0xff09, "Tab"]]),
      SysRq: () => chord(rfb, [ALT, [0xff15, "PrintScreen"]]),
    },
  };
}

type Key = readonly [number, string];
const CONTROL: Key = [0xffe3, "ControlLeft"];
const ALT: Key = [0xffe9, "AltLeft"];

function chord(rfb: RFB, keys: readonly Key[]): void {
  for (const [symbol, code] of keys) rfb.sendKey(symbol, code, true);
  for (const [symbol, code] of [...keys].reverse()) rfb.sendKey(symbol, code, false);
}
