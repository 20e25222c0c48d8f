package campaign

import (
	"container/list"
	"sync"
)

// cache keeps compiled campaigns or templates, the least recently used go first when they grow beyond a number of bytes. One always
// stays. Two who ask for the same at once wait for one compilation.
type cache[K comparable] struct {
	mu    sync.Mutex
	most  int64
	size  int64
	order *list.List // of *cached[K], the last used first
	items map[K]*list.Element
}

type cached[K comparable] struct {
	id   K
	once sync.Once
	c    *composition
	err  error
	size int64
}

func newCache[K comparable](most int64) *cache[K] {
	return &cache[K]{most: most, order: list.New(), items: map[K]*list.Element{}}
}

// get returns what compile once made for id. Errors are not kept.
func (c *cache[K]) get(id K, compile func() (*composition, error)) (*composition, error) {
	c.mu.Lock()
	el := c.items[id]
	if el == nil {
		el = c.order.PushFront(&cached[K]{id: id})
		c.items[id] = el
	} else {
		c.order.MoveToFront(el)
	}
	item := el.Value.(*cached[K]) //nolint:forcetypeassert // the list holds nothing else
	c.mu.Unlock()
	item.once.Do(func() {
		item.c, item.err = compile()
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.items[id] != el {
			return
		}
		if item.err != nil {
			c.drop(el)
			return
		}
		item.size = item.c.footprint()
		c.size += item.size
		for last := c.order.Back(); c.size > c.most && last != el && last != nil; last = c.order.Back() {
			c.drop(last)
		}
	})
	return item.c, item.err
}

func (c *cache[K]) drop(el *list.Element) {
	item := el.Value.(*cached[K]) //nolint:forcetypeassert // the list holds nothing else
	c.order.Remove(el)
	delete(c.items, item.id)
	c.size -= item.size
}

func (c *cache[K]) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.order.Init()
	clear(c.items)
	c.size = 0
}

// footprint is about how many bytes of memory a composition takes.
func (c *composition) footprint() int64 {
	n := int64(len(c.head) + len(c.foot) + len(c.tail) + 8192)
	for _, p := range []*program{c.subject, c.text, c.html} {
		if p == nil {
			continue
		}
		for _, o := range p.ops {
			n += int64(len(o.text)) + 200
			if o.chunk != nil {
				n += int64(len(o.chunk.quoted) + len(o.chunk.base64[0])*3)
			}
		}
	}
	return n
}
