// Views that are loaded when one first goes there.
import type { ComponentType } from "preact";
import { useEffect, useState } from "preact/hooks";

export function lazy<Props extends object>(load: () => Promise<ComponentType<Props>>): ComponentType<Props> {
  let loaded: ComponentType<Props> | null = null;
  return function Lazy(props: Props) {
    const [Loaded, setLoaded] = useState<{ view: ComponentType<Props> } | null>(loaded && { view: loaded });
    const [wrong, setWrong] = useState(false);
    useEffect(() => {
      if (Loaded) return;
      load().then(
        (view) => {
          loaded = view;
          setLoaded({ view });
        },
        () => setWrong(true),
      );
    }, []);
    if (Loaded) return <Loaded.view {...props} />;
    if (!wrong) return null;
    return (
      <p class="empty" role="alert">
        This part of the page could not be loaded.{" "}
        <button type="button" onClick={() => window.location.reload()}>
          Load the page again
        </button>
      </p>
    );
  };
}
