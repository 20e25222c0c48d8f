// Package dkim keeps the keys of the sender domains and signs mail with them (RFC 6376, RFC 8301, RFC 8463).
//
// The journey of a message through it:
//
//  1. intake or campaign asks the Keyring for the active Keys of the From domain; none means that the mail is refused,
//     never sent unsigned.
//  2. The body runs through a BodyHasher, once per body: many messages may share the hash.
//  3. Sign puts one DKIM-Signature field per key before the header.
//
// Verify is the other side, for `relayctl dkim verify` and for tests.
//
//	pending ── Activate ──> active ── Retire, or Activate of its successor ──> retired
package dkim
