// Package campaign sends one message to many recipients, each in a copy of its own. The way of a campaign:
//
//  1. Create (create.go) checks the request in all its parts: addresses, data, images, and the template, which is
//     compiled (composition.go, body.go, lex.go, compile.go, block.go, expr.go) to flat operations. How a merged value
//     is escaped is decided then, by the place of the HTML in which it stands (context.go, escape.go). Partials are
//     compiled in their place (partial.go), style rules written into attributes (css.go, selector.go, style.go). The
//     text part is made from the HTML where there is none (text.go). Where the request names a stored template
//     (library.go, edition.go, reference.go), its version is copied at the start (freeze.go); pictures are assets
//     (asset.go). Previews (preview.go, sample.go) and single messages of stored templates (stored.go) go the same way
//     as those of campaigns.
//  2. AddRecipients (importer.go) streams contacts into rows (recipient.go), one for each mailbox, whatever its
//     spelling: the row's number is the number of the envelope to come.
//  3. Start (action.go) makes every recipient's message once without keeping it. What one of them lacks is told before
//     anything is queued.
//  4. Run (fanout.go) moves the rows through intake into the spool, a page in each transaction, that also removes the
//     rows and counts them: a crash at any moment neither loses nor doubles a recipient.
//  5. Compose (service.go, mime.go, render.go, encode.go) makes the message when delivery has leased its envelope. What
//     is the same for all is encoded once; the same envelope gives the same bytes again.
//  6. SettleHook (count.go) counts outcomes in their own transaction, and ends the campaign with the last one.
//  7. Unsubscribe (unsubscribe.go, token.go) honours the link in the message, with nothing but the link.
//
// The states:
//
//	draft ──start──▶ preparing ──▶ running ◀──resume── paused
//	  │   ◀─refused──┘                │ └────pause───────▲
//	  │                               ├──▶ completed, completed_with_failures
//	  └──────────cancel───────────────┴──▶ cancelling ──▶ cancelled
//
// Progress (progress.go) and Recipients (results.go) answer at any time; counts always sum to the total.
package campaign
