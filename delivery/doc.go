// Package delivery gets every message to the next hop as fast as the receiver likes it, and is honest about what
// happened. The journey of an envelope, in the order in which the code tells it:
//
//  1. Scheduler.Run takes queues that have work due from the spool (scheduler.go).
//  2. Rules choose the route, the source and the level of TLS (rule.go, source.go); a look-up finds the hosts: the MX of
//     the recipient's domain, or a smarthost (route.go). A suspended site hands over to the route's fallback.
//  3. The queue joins its site; domains with the same hosts share one, and its limits (site.go, work.go).
//  4. The site leases a batch over all its queues; the lease is durable before the network is touched.
//  5. The batch is split into bundles: one message and its recipients at the site (bundle.go).
//  6. A worker, one per connection, runs an Attempt for each bundle: it renders what a campaign left to render, takes
//     an open session or connects (attempt.go, mx.go, open.go, pool.go).
//  7. The gate is asked whether each envelope is still wanted; then Session.Send presents them (session.go, dot.go; with
//     BDAT chunk.go).
//  8. Classify tells what each reply means (classify.go, rules.txt, reply.go).
//  9. The retry policy says when a deferred envelope comes back, or that its time or attempts are over (retry.go).
//  10. The settler makes results durable, with a notice to the sender where one is due (settle.go, notify.go).
//
// The states of an envelope here:
//
//	           ┌────────────── no attempt counted: site paused, host unreachable, our own fault ──────────────┐
//	           ▼                                                                                               │
//	queued → leased → ready → presented → delivered | bounced | deferred (comes back) | expired                │
//	           └──────┴─ gate: suppressed, cancelled ─ rendering: failed ─ site: ──────────────────────────────┘
//
// # Retry, in two layers
//
// Within an attempt, in seconds: every MX host by preference and every address; when all refuse or break the
// connection, again after 1 s and 2 s. Between attempts, in hours: by the message's policy, by default after 15
// minutes and then 4 hours, ±10 %, until ExpiresAt. Only a transaction in which an envelope was presented, and not
// answered with a wish for less mail, counts as an attempt. A site that cannot be reached or that throttles (421,
// 4.7.x of that kind) pauses, 30 s at first, doubling up to 30 minutes; what waits for it loses nothing but time. An
// envelope that became overdue while nobody looked (a long downtime, a clock that jumped) gets one more try however late
// it is, and expires when that fails.
//
// # Limits
//
// What one account sends in one stream or campaign to one site is a flow (flow.go); flows take turns by weight, in what is
// leased (fill.go) and in what is sent. Site, provider, source address, account and campaign each have a limiter
// (limiter.go): fixed ceilings of connections and rate (limit.go, gcra.go), and for sites and providers what was learned
// (governor.go). The connections in all are shared in room.go. Who is denied for moments waits in the limiter's line, in memory and without a goroutine; what has to wait
// longer goes back to its queue. States outlive the process (memory.go); operators see and steer them (hold.go).
//
// # Promises
//
// Nothing is sent that is not under a durable lease. A reply lost after the final dot defers the envelope as in_doubt
// and is counted: the remote may have taken it. A smarthost gets credentials only after its certificate is verified;
// when it refuses them the route pauses with an error in the log, and nothing bounces. The number of goroutines,
// connections, look-ups and leased envelopes is bounded; bulk never takes the last tenth of the connections.
// A connection is a site's for a turn only, 20 transactions or two seconds, when a site that has none waits for one: of all, of
// its provider's or of its source's.
package delivery
