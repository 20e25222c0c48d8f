// Package intake is the one door of relayd: only here messages are made. What comes in over SMTP, over the API or from
// our own DSN composer passes Accept or Prepare; a campaign's envelopes pass PageTx, without bodies.
//
// What a message goes through, as one stream:
//
//  1. begin checks sender domain and recipients before anything is read.
//  2. taking.Write gathers the header section, at most 256 KiB, and refuses bare CR and LF, NUL and long lines.
//  3. header checks From and Sender against the domains of who submits, removes Bcc, Return-Path, X-Relay-* and
//     signatures of our own domains, adds Received and, where missing, Date and Message-ID.
//  4. The body goes to the body hash and, chunk by chunk, to the spool, as it comes.
//  5. A body with octets above 127 is made 7-bit: taking.clean reads it again from where it was stored.
//  6. header.sign puts a DKIM signature of every active key before the section. A domain without a key refuses the
//     message; only one whose sign is "none" leaves unsigned.
//  7. envelopes makes one for each recipient; those who are suppressed settle at once.
//  8. spool.Store.Commit makes all of it durable. Only then Accept returns.
package intake
