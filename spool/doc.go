// Package spool is the durable store of messages and the queue of their envelopes.
//
// # The life of an envelope
//
//		        Commit, PutTx                Lease                  Settle
//		intake ───────────────▶ due ──────────────────▶ leased ───────────────▶ outcome
//		                        ▲ │ ▲                    │  │                   delivered bounced failed
//		                release │ │ └── deferred, Release┘  │ crash             expired suppressed cancelled
//		                        │ ▼ hold                    ▼
//		                        held            due again, in doubt (Open)
//
//	 1. intake writes the body through a BodyWriter and calls Commit with the message and its envelopes. Each envelope
//	    gets a record, and an entry in the due table under its queue, class and time of next attempt.
//	 2. delivery learns from Take which queues have due work, and calls Lease: the due entries become records of one lease.
//	 3. The envelopes are attempted. WriteBody streams the body.
//	 4. Settle writes what became of them: outcome, event, counters, and what the hooks add (campaign counters,
//	    suppressions, the DSN) in one transaction. The message and its body go with the last envelope.
//
// # What is promised
//
// Commit returned nil: the message, its body, its envelopes and the event of its acceptance are on stable storage, and
// the envelopes will be attempted or reported. Commit returned an error: nothing of the message is visible, now or
// after a restart, with one exception: an error that wraps kv.ErrStorageFailed leaves open what the disk has, and a
// restart shows it. The caller refuses the message, and the client's retry may then be a duplicate.
//
// Settle returned nil: the results, their events, counters and all that hooks and extra functions wrote are on stable
// storage, all of it at once. Settle returned an error: none of it is, and the envelopes are still under the lease
// (unless the error is ErrLeaseLost or ErrDeposed: then they are not this caller's to settle).
//
// Lease returned: the batch is recorded on stable storage. So after a crash exactly the envelopes that may have been
// presented to a remote host are known. Open puts them back into their queues, due now, with InDoubt one higher: they
// are in doubt, and delivered a second time if the remote host had accepted them. That is the only source of
// duplicates, and they bear the same Message-ID. Delivery is at least once, never at most once.
//
// Counts add up: accepted = live + the sum of the outcomes, in every snapshot of the store.
//
// # Ownership
//
// A partition of the queues, by recipient domain, belongs to one node at a time; today one node owns all partitions of
// a store. Open takes the next fencing number, and every lease, settlement and action compares it in its own
// transaction: a process that lost the store to a later one gets ErrDeposed and changes nothing, however late its
// transaction comes. What it had under lease is in doubt, and goes back to the queues at the later Open.
//
// # History
//
// The outcome of each envelope is kept until Purge removes it, with the steps that led to it (Notes). History finds it
// by recipient, Message-ID or queue ID.
//
// # Pressure
//
// Admit refuses new messages while disk or memory are below their floors, or commits take too long. It is for those who
// take mail in; settling, and the notices that become durable with it, are never refused.
//
// # Not promised
//
//   - Exactly once: SMTP cannot.
//   - An order between envelopes of one queue beyond class and due time.
//   - That a held envelope expires: it waits for the operator.
//   - That PauseStream outlives the process: who pauses does it again after a restart.
//   - That a nil of Commit survives a disk that lies about fdatasync, or the loss of the disk: see relayctl backup. After a
//     restore what was delivered since the backup is in the queue again.
//   - That a lease ends by itself: it lasts as long as the process. There is nothing to extend.
//
// # Memory
//
// The queues table (queue.go) keeps about half a kilobyte for each queue that has work, nothing for an envelope that
// waits, and a few words for one under lease. It is rebuilt at Open from the keys of the due and held tables.
package spool
