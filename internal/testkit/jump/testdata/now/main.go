// Command now prints, at each line that it reads, what the wall clock shows and how much time has passed since its start.
package main

import (
	"bufio"
	"fmt"
	"os"
	"time"
)

func main() {
	began := time.Now()
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		fmt.Println(time.Now().Unix(), int(time.Since(began).Seconds()))
	}
}
