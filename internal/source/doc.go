// Package source keeps lists in step with tables of MySQL, MariaDB and PostgreSQL.
//
// A run of a source:
//
//  1. resolves the list, reads the DSN that dsn_ref names, and opens one read-only transaction: one snapshot, whose time
//     is the database's own, never ours;
//  2. holds the configuration against the table as it is now (plan): columns, types, the zone of its times, the key;
//  3. asks for the rows behind the watermark less the overlap, up to that time less the safety lag, in pages in the order
//     of (updated_at, key);
//  4. makes each page durable in one transaction: contacts, what is remembered of the rows, the watermark, the counts of
//     the run. A crash repeats at most one page, and a page may be repeated without harm;
//  5. on a full run reads the whole table first, in the order of keys, and compares it with what it remembers: the rows
//     that it does not meet are missing.
//
// Of every row that has a contact an entry is remembered: its address, its time and a hash of its content. It makes the
// overlap cheap (a row as it was is not written), finds the contact that a row leaves when its address changes or it is
// deleted, and settles whose an address is when several rows have it: the row that changed last has the contact; when it
// leaves, the next one is read again by its key.
//
//	        due, or asked                 done
//	idle ───────────────▶ queued ─▶ running ─▶ idle
//	 ▲                                 │ error: watermark stays where the last page was
//	 └──────────── retried, with pauses that double, by ─ failed
//
// A row that is wrong is an error of that row, told in the run; it ends nothing. A source that cannot be read as it is
// configured (no such table, a key that is not unique) fails its run, and nothing is changed.
package source
