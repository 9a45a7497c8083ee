// What several views say about the whole inventory.
import { computed } from "@preact/signals";
import { issues } from "./issues";
import { now, tables } from "./store";

// Only the age of jobs depends on the time: a minute is exact enough.
const minute = computed(() => Math.floor(now.value / 60_000) * 60_000);

export const issuesNow = computed(() => issues(tables.value, minute.value));
