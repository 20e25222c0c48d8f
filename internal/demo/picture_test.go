package demo

import (
	"bytes"
	"image/png"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPicture(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 10_000, 68_000} {
		b, err := Picture(size)
		require.NoError(t, err)
		_, err = png.Decode(bytes.NewReader(b))
		require.NoError(t, err)
		if size > 8_000 {
			require.GreaterOrEqual(t, len(b), size)
			require.LessOrEqual(t, len(b), size+size/50+500)
		}
	}
	first, err := Picture(10_000)
	require.NoError(t, err)
	second, err := Picture(10_000)
	require.NoError(t, err)
	require.True(t, bytes.Equal(first, second), "the same at every start")
}
