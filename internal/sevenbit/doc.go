// Package sevenbit makes MIME messages 7-bit clean (RFC 2045 section 6, RFC 6152 section 3), so that they can be signed
// in the form in which every host takes them.
//
// A body is read twice, each time as a stream:
//
//  1. Scanner walks over its parts and notes of each whether it has octets above 127, and what its header says.
//  2. Plan decides: leaf parts that need it become quoted-printable (text) or base64 (the rest), and the labels of the
//     multiparts and messages around them follow. What another has signed or encrypted is never touched.
//  3. Plan.NewWriter walks over the body again and writes it as planned. Plan.Header is the header section to go with it.
//
// Decoded, each part is octet for octet what it was. A structure of which readers could think differently (a boundary
// that stands twice, a part without the end of its header, more parts or levels than maxParts and maxDepth) is left as
// it is.
//
// Memory is bounded by the largest header section of a part, the largest block that is written, and a few dozen octets
// for each part.
package sevenbit
