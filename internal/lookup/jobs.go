package lookup

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"headwater.example/client"
	"headwater.example/tensor"
)

// job is a job file in memory.
type job struct {
	tensors  []tensor.Data
	metadata map[string]string
}

func (j *job) add(name string, x []float32, shape ...int) {
	bytes := make([]byte, 4*len(x))
	for i, v := range x {
		binary.LittleEndian.PutUint32(bytes[4*i:], math.Float32bits(v))
	}
	j.tensors = append(j.tensors, tensor.Data{Info: tensor.Info{Name: name, DType: tensor.F32, Shape: shape}, Bytes: bytes})
}

func (j *job) file() (*bytes.Reader, error) {
	var file bytes.Buffer
	if err := tensor.WriteSafetensors(&file, j.tensors, j.metadata); err != nil {
		return nil, err
	}
	return bytes.NewReader(file.Bytes()), nil
}

// run has a cluster compute a job, and returns the tensors of its result. Nothing of the job is left with the coordinator.
func (j *job) run(ctx context.Context, c *client.Client, name string) (_ map[string][]float32, err error) {
	file, err := j.file()
	if err != nil {
		return nil, err
	}
	submitted, err := c.Submit(ctx, client.SubmitOptions{Reader: file, Size: file.Size(), Name: name})
	if err != nil {
		return nil, err
	}
	if _, err := c.Wait(ctx, submitted.ID, nil); err != nil {
		return nil, err
	}
	defer func() {
		_, gone := c.Delete(context.WithoutCancel(ctx), submitted.ID)
		err = errors.Join(err, gone)
	}()
	var out bytes.Buffer
	if _, err := c.DownloadTo(ctx, submitted.ID, &out, nil); err != nil {
		return nil, err
	}
	result, err := tensor.OpenReaderAt(name, bytes.NewReader(out.Bytes()), int64(out.Len()))
	if err != nil {
		return nil, err
	}
	all := map[string][]float32{}
	for _, tensorName := range result.Names() {
		info, _ := result.Lookup(tensorName)
		raw, x := make([]byte, info.Bytes()), make([]float32, info.Elements())
		if err := result.ReadAt(raw, tensorName, 0); err != nil {
			return nil, err
		}
		if err := tensor.Widen(x, raw, tensor.F32); err != nil {
			return nil, fmt.Errorf("read %s of the result: %w", tensorName, err)
		}
		all[tensorName] = x
	}
	return all, nil
}
