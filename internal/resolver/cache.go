package resolver

import (
	"container/list"
	"time"
)

// question is what is asked: a fully qualified name in lower case and a record type.
type question struct {
	name string
	typ  uint16
}

// answer is what was found out. It is shared: nobody changes it.
type answer struct {
	records []record
	err     error // an *Error, or nil
	expires time.Time
}

// record is one record of the type that was asked for.
type record struct {
	pref uint16 // MX
	text string // host name, address in text form, or joined TXT strings
}

// Bounds of the time for which an answer is kept.
const (
	minTTL       = time.Second
	maxTTL       = time.Hour
	maxNegative  = 15 * time.Minute // NXDOMAIN and no data; RFC 2308 section 5
	noSOA        = 30 * time.Second // the same without an SOA record to say how long
	temporaryTTL = 2 * time.Second  // RFC 2308 section 7 allows up to five minutes
)

// maxCacheBytes bounds the cache by what its entries take, roughly.
const maxCacheBytes = 16 << 20

// cache keeps answers until they expire, or until they are the ones least recently used and room is needed. Its user
// locks.
type cache struct {
	entries map[question]*list.Element
	recent  list.List // of *entry, the last used first
	bytes   int
	most    int
}

type entry struct {
	question
	*answer
	bytes int
}

func newCache(most int) *cache { return &cache{entries: map[question]*list.Element{}, most: most} }

func (c *cache) get(q question, now time.Time) *answer {
	e, ok := c.entries[q]
	if !ok {
		return nil
	}
	if a := e.Value.(*entry).answer; now.Before(a.expires) {
		c.recent.MoveToFront(e)
		return a
	}
	c.remove(e)
	return nil
}

func (c *cache) put(q question, a *answer) {
	if e, ok := c.entries[q]; ok {
		c.remove(e)
	}
	n := 300 + len(q.name)
	for _, r := range a.records {
		n += 32 + len(r.text)
	}
	c.entries[q] = c.recent.PushFront(&entry{q, a, n})
	for c.bytes += n; c.bytes > c.most && c.recent.Len() > 1; {
		c.remove(c.recent.Back())
	}
}

func (c *cache) remove(e *list.Element) {
	c.bytes -= e.Value.(*entry).bytes
	delete(c.entries, e.Value.(*entry).question)
	c.recent.Remove(e)
}
