// Package admin is the HTTP face of relayd: the API, the unsubscribe pages, the probes and the metrics.
//
// The journey of a request:
//
//  1. A listener takes it: the TCP address, or the unix socket, whose callers have full rights because only the owner of
//     the data directory can open it.
//  2. middleware.go gives it an ID, a deadline and a place in the metrics, and turns a panic into a problem.
//  3. routes.go, the one table of all API calls, names the handler, the scope that a key needs and the query parameters
//     that are known; openapi.go prints the same table at /v1/openapi.json.
//  4. auth.go finds out who calls. A caller sees its own account; what belongs to another one does not exist for it.
//  5. json.go reads the body strictly, or upload.go streams it.
//  6. The handler, in the file named after its resource, calls the store or service that does the work. A list gives the
//     part that page.go read from the request, and page.go makes the answer of it.
//  7. problem.go, the one table of errors, says how what went wrong is answered.
//
// unsubscribe.go stands beside this: it is called by mailbox providers and people, without any key.
package admin
