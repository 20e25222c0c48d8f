// Package checklist looks at a finished message as a large mailbox provider does, and says what is wrong with it: the
// rules F01 to F20 of docs/templates.md, each of which a message either keeps or not, whoever wrote it. It
// needs nothing but the message.
package checklist
