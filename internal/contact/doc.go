// Package contact keeps whom an account may write to: contacts with their attributes, the lists that they are on, the
// topics that they want, and segments, which are questions about their attributes.
//
// A contact is one mailbox of one account. Its key is the mailbox's canonical spelling (mail.Path.Key), so that two
// spellings are one contact and never get two mails; the spelling that came last is kept for the envelope. A contact is
// on any number of lists, on each with a status of its own:
//
//	             row says subscribed            row says unsubscribed
//	(new) ──────────────▶ subscribed ───────────────────▶ unsubscribed
//	  └── opt_in double, no consent ─▶ pending ──consent──▶ subscribed
//
// No import and no sync leads from unsubscribed to subscribed, unless its caller is told to allow it; no option leads
// there for a mailbox that complained or bounced. That holds over deletion too: of a contact that was erased, or deleted
// while it was unsubscribed, a keyed hash stays that keeps a later import from bringing it back.
//
// Rows come in through ApplyTx, a thousand or so in one transaction that the caller may share: an import writes its
// progress in it, a sync its watermark. Audience walks a list in pages for a campaign; WantedTx is the last look before
// a mail is sent.
package contact
