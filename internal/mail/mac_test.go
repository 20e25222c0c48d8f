package mail

import (
	"crypto/hmac"
	"crypto/sha256"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMACIsHMACOfItsParts(t *testing.T) {
	t.Parallel()
	key := []byte("key")
	m := NewMAC(key)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for _, text := range []string{"", "a", "some more text", "a"} {
				h := hmac.New(sha256.New, key)
				h.Write([]byte("prefix" + text))
				require.Equal(t, h.Sum(nil), m.Sum([]byte("prefix"), []byte(text)))
			}
		})
	}
	wg.Wait()
}
