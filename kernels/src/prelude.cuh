// What every CUDA source of Motley can use.
